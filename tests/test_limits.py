"""Every reader of the parent process has an end: in bytes, items, steps and seconds.

Times are processor time and generous: what is shown is that they do not grow with the input.
`tests/fuzzing.py` looks for what nobody thought of.
"""

from __future__ import annotations

import importlib.metadata
import json
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from lora_doctor import limits
from lora_doctor.cli.explain import explain
from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.symptoms import find_by_message
from lora_doctor.errors import EvidenceError, InputError, LimitError
from lora_doctor.limits import Bound, bounded, count_items, step
from lora_doctor.recipe.files.read_write import read_recipe
from lora_doctor.static.model_files import gather_static
from lora_doctor.static.piece import inside, parse_json
from lora_doctor.static.remote_code import code_fit
from lora_doctor.static.remote_code.demanded_packages import _by_text
from lora_doctor.static.remote_code.loaded_code import loaded_code
from lora_doctor.static.remote_code.remote_code import (
    RemoteCode,
    nested_adapter_calls,
    read_remote_code,
)
from lora_doctor.static.script.training_script import read_training_script
from lora_doctor.static.tokenizer_file import read_tokenizer_file
from lora_doctor.static.tokenizer_reading import unreadable_parts
from lora_doctor.static.weights import read_header, read_weights


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block takes no more processor time than this."""
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


# --- the mechanism --------------------------------------------------------------------------


def test_steps_and_seconds_end_a_block() -> None:
    with pytest.raises(LimitError, match="reading it took more than the 5,000 steps"):  # noqa: SIM117
        with bounded(Bound("it", 5_000, 60.0)):
            while True:
                step()
    with pytest.raises(LimitError, match=r"reading it took more than 0\.1 s of processor time"):  # noqa: SIM117
        with bounded(Bound("it", 1 << 60, 0.1)):
            while True:
                step()
    step(1 << 62)  # outside of a block nothing is counted


def test_the_outermost_block_counts() -> None:
    """A reader that calls others does not get a new budget for each."""
    with pytest.raises(LimitError, match="reading the whole"):  # noqa: SIM117
        with bounded(Bound("the whole", 5_000, 60.0)):
            while True:
                with bounded(Bound("a part", 1_000_000, 60.0)):
                    step(100)


@pytest.mark.parametrize("value", [[], {}, [1, [2, {"a": 3}]], {"a": {"b": [1, 2]}}, "a,b:c", 1.5])
def test_items_are_never_counted_too_low(value: Any) -> None:
    def values(part: Any) -> int:
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return 1 + sum(map(values, inner))

    assert count_items(json.dumps(value)) + 1 >= values(value)


# --- JSON -----------------------------------------------------------------------------------


def test_json_of_very_many_values_or_levels_is_refused_before_it_is_parsed() -> None:
    with within(2.0), pytest.raises(LimitError, match="about 5,000,001 values, more than the"):
        parse_json(b"[" + b"0," * 5_000_000 + b"0]", "config.json")
    with pytest.raises(LimitError, match="nests more than 64 levels"):
        parse_json(b"[" * 70 + b"]" * 70, "config.json")
    assert parse_json(b"[" * 60 + b"]" * 60, "config.json")


def test_a_deep_config_is_one_line(tmp_path: Path) -> None:
    """Its `repr` and its copies would recurse: 900 levels are an internal error in many places."""
    config = '{"model_type": "llama", "architectures": ' + "[" * 900 + "]" * 900 + "}"
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match="nests more than"):
        gather_static(tmp_path, source="model")


def test_a_message_is_never_as_long_as_a_file() -> None:
    error = InputError(f"recipe.json: unknown key {'a' * 100_000}; did you mean 'r'?")
    assert len(str(error)) <= 2_000 and str(error).endswith("did you mean 'r'?")


# --- tokenizers -----------------------------------------------------------------------------


def test_a_tokenizer_is_handed_to_the_library_in_bounded_parts(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    parts = [{"type": "NFC"}] * 50_000 + [{"type": "?"}]
    content = {"normalizer": {"type": "Sequence", "normalizers": parts}, "model": {}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with within(5.0), pytest.raises(LimitError, match="parts, more than the 64"):
        unreadable_parts(read_tokenizer_file(tmp_path / "tokenizer.json"))


def test_what_stands_before_a_vocabulary_is_bounded(tmp_path: Path) -> None:
    content = (
        '{"pre_tokenizer": null, "added_tokens": ['
        + "[]," * 2_000_000
        + '[]], "model": {"vocab": {}}}'
    )
    (tmp_path / "tokenizer.json").write_text(content)
    with within(2.0), pytest.raises(LimitError, match="before its vocabulary, has about"):
        read_tokenizer_file(tmp_path / "tokenizer.json")


# --- weights --------------------------------------------------------------------------------


def safetensors(header: Any, data: int) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + bytes(data)


def entry(start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}


_TWICE = b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 4)).encode(),) * 2)


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, "'b' overlaps another tensor"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "'b' overlaps another tensor"),
        ({"a": entry(0, 4), "b": entry(6, 8)}, 8, "'b' leaves a hole before it"),
        ({"a": entry(2, 4)}, 4, "'a' leaves a hole before it"),
        ({"a": entry(0, 4)}, 6, "describes 4 bytes of data, the file has 6"),
        (_TWICE, 4, "has the key 'a' twice"),
        (b'{"a": {"dtype": "U8", "dtype": "U8", "shape": [], "data_offsets": [0, 1]}}', 1, "twice"),
        ({"__metadata__": {"format": 1}}, 0, "metadata that is not text"),
        ({"__metadata__": []}, 0, "metadata that is not an object"),
        ({"a": {**entry(0, 0), "shape": [1 << 40, 1 << 40, 0]}}, 0, None),
        ({"a": {**entry(0, 0), "shape": [1 << 63, 0]}}, 0, "has the shape"),
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], "x": NaN}}', 1, "number"),
        (b'{"\\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', 1, "surrogate"),
    ],
)  # fmt: skip
def test_headers_that_the_library_refuses_are_refused(
    tmp_path: Path, header: Any, data: int, says: str | None
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(header, data))
    if says is None:
        read_header(path)
        return
    with pytest.raises(EvidenceError, match=says):
        read_header(path)


def test_tensors_may_stand_in_any_order_and_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({"b": entry(4, 6), "a": entry(0, 4), "c": entry(4, 4)}, 6))
    tensors, _ = read_header(path)
    assert sorted(tensors) == ["a", "b", "c"]


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 77_000_000))
        stream.truncate(90_000_000)
    with within(1.0), pytest.raises(LimitError, match="77,000,000 bytes, more than the"):
        read_header(path)


def test_headers_of_many_shards_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_doctor.static.weights.CHECKPOINT_HEADER_BYTES", 500)
    shard = safetensors({"t": entry(0, 4)}, 4)
    names = [f"{number:02}.safetensors" for number in range(20)]
    for name in names:
        (tmp_path / name).write_bytes(shard)
    index = {"weight_map": {name: name for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_weights(tmp_path)
    assert 0 < len(found.files) < 20 and len(found.files) + len(found.unread) == 20
    assert "the headers up to 19.safetensors has" in found.unread["19.safetensors"]


@pytest.mark.parametrize("name", [".", "", "a\0b", "..", "./.", "//"])
def test_a_name_that_is_no_file_is_a_reason(tmp_path: Path, name: str) -> None:
    with pytest.raises(EvidenceError):
        inside(tmp_path, name)


# --- code -----------------------------------------------------------------------------------


def repository(folder: Path, text: str) -> RemoteCode:
    auto_map = {"AutoConfig": "modeling_x.Conf", "AutoModel": "modeling_x.X"}
    config = {"model_type": "x", "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_x.py").write_text(text)
    return read_remote_code(folder, gather_static(folder, source="model"))


def missing(code: RemoteCode) -> tuple[code_fit.MissingName, ...]:
    return code_fit.missing_names(code, loaded_code(code, (), None))


def test_a_thousand_unknown_names_read_transformers_once(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    names = [f"NoSuchName{number}" for number in range(1_000)]
    code = repository(tmp_path, "".join(f"from transformers import {name}\n" for name in names))
    with within(20.0):
        try:
            found = missing(code)
        except LimitError as error:
            # transformers 4.37 lists its names in one file of 8,000 lines: a thousand look-ups in
            # it are more steps than a repository is given, and that is said.
            assert "3,000,000 steps" in str(error)
            assert Version(importlib.metadata.version("transformers")) < Version("4.50")
            return
    assert [each.name for each in found] == names


def test_many_unknown_base_classes_read_transformers_once(tmp_path: Path) -> None:
    """What a wrapped class inherits is followed into transformers, class by class."""
    pytest.importorskip("transformers")
    classes = "".join(
        f"class Part{n}(transformers.NoSuchBase{n}): ...\n"
        f"class Model{n}(nn.Module):\n"
        f"    def __init__(self):\n"
        f"        self.m = Part{n}()\n"
        f"        get_peft_model(self.m, LoraConfig())\n"
        for n in range(200)
    )
    head = (
        "import transformers\nfrom peft import get_peft_model, LoraConfig\nfrom torch import nn\n"
    )
    code = repository(tmp_path, head + classes + "class X: ...\n")
    with within(15.0):
        calls = nested_adapter_calls(code)
    assert len(calls) == 200 and {call.inner_has_prepare_inputs for call in calls} == {None}


@pytest.mark.parametrize(
    "line",
    ["import a{n}\n", "from transformers.m{n} import x\n", "from transformers import N{n}\n"],
)
def test_fifty_thousand_imports_are_more_than_is_read(tmp_path: Path, line: str) -> None:
    text = "".join(line.format(n=number) for number in range(50_000))
    with within(30.0):
        code = repository(tmp_path, text)
        assert "more than the" in code.unread["modeling_x.py"]
        assert missing(code) == ()


BOMBS = {
    "a chain of names": "".join(f"a{n} = a{n + 1}\n" for n in range(8_000)),
    "reads of a config": "class X:\n def __init__(self, config):\n  s = config.rope_scaling\n"
    + "  y = s['t']\n" * 20_000,
    "imports in a method": "class X:\n def __init__(self):\n" + "  import a\n" * 18_000,
    "long attributes": ("x = a" + ".b" * 300 + "\n") * 400,
    "star imports of itself": "from .modeling_x import *\n" * 40 + "class X(Y): ...\n",
    "conditions": "x = " + "a and " * 5_000 + "c.config['k']\n",
    "calls of calls": "".join("x" + ".f()" * 100 + "\n" for _ in range(500)),
    "losses": "import torch\ndef f():\n loss = 1\n"
    + " if torch.isnan(loss): loss = torch.nan_to_num(loss)\n" * 3_000 + " return loss\n",
    "one assignment of many": "a = " * 900 + "1\n",
    "optimizers": "".join(f"o{n} = AdamW(m{n}.parameters())\n" for n in range(12_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_code_is_read_in_bounded_time(tmp_path: Path, name: str) -> None:
    """Each would take time by the square of its length; a limit is as good an answer."""
    with within(40.0):
        code = repository(tmp_path, BOMBS[name])
        try:
            loaded = loaded_code(code, (), None)
            code_fit.missing_packages(code, loaded, demands_all=True)
            code_fit.missing_keys(code, loaded, {})
        except LimitError as error:
            assert "more than" in str(error)
    script = tmp_path / "train.py"
    script.write_text(BOMBS[name])
    with within(40.0):
        try:
            read_training_script(script)
        except InputError as error:
            assert "\n" not in str(error)


def test_a_file_of_very_many_tokens_is_not_parsed(tmp_path: Path) -> None:
    """A syntax tree takes some 500 bytes for each: 2 MB of these would take half a gigabyte."""
    code = repository(tmp_path, "a\n" * 900_000)
    assert "tokens, more than the 250,000" in code.unread["modeling_x.py"]
    (tmp_path / "train.py").write_text("a\n" * 900_000)
    with pytest.raises(InputError, match="tokens, more than the 250,000"):
        read_training_script(tmp_path / "train.py")


@pytest.mark.parametrize(
    "text", ["\n" * 500_000, " " * 500_000, "try:" * 100_000, "import " * 70_000]
)
def test_demanded_packages_are_found_in_linear_time(text: str) -> None:
    with within(5.0):
        _by_text(text)


def test_demanded_packages_are_those_of_the_library() -> None:
    """Our reading of lines beside the library's own regular expressions."""
    import re

    def of_the_library(content: str) -> list[str]:
        kept = re.sub(
            r"\s*try\s*:\s*.*?\s*except\s*.*?:", "", content, flags=re.MULTILINE | re.DOTALL
        )
        found = re.findall(r"^\s*import\s+(\S+)\s*$", kept, flags=re.MULTILINE)
        found += re.findall(r"^\s*from\s+(\S+)\s+import", kept, flags=re.MULTILINE)
        return sorted({name.split(".")[0] for name in found if not name.startswith(".")})

    texts = [
        "import a\nfrom b.c import d\n  import e\nfrom .f import g\nimport h as i\n",
        "try:\n    import a\nexcept ImportError:\n    import b\nimport c\n",
        "try:\n  import a\nimport b\n",
        "x = 1\ntry :\n import a\nexcept (A, B) as e: pass\ntry:\n import c\nexcept:\n import d\n",
        '"""\n  import doc\n  from text import x\n"""\nif a:\n\timport t\n',
    ]
    for text in texts:
        assert sorted(_by_text(text)) == of_the_library(text), text


# --- recipes and pasted text ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("target_modules:\n" + "- a\n" * 100_000, "values, more than the"),
        ("target_modules: [" + "a," * 100_000 + "]", "values, more than the"),
        ("r: '" + "a" * 1_200_000 + "'", "characters, more than the"),
        ("".join(f"k{n}: {{}}\n" for n in range(20_000)), "values, more than the"),
    ],
)
def test_yaml_is_bounded(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with within(2.0), pytest.raises(InputError, match=says):
        read_recipe(path)


def test_the_longest_yaml_that_is_read(tmp_path: Path) -> None:
    """Ten thousand modules by name, as for the experts of a mixture."""
    path = tmp_path / "recipe.yaml"
    path.write_text("target_modules:\n" + "".join(f"- layers.{n}.up\n" for n in range(10_000)))
    with within(20.0):
        assert len(read_recipe(path).get("target_modules")) == 10_000


def test_anchors_that_are_used_again_print_nothing(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("r: &a 8\nlora_alpha: &a 16\n")
    assert read_recipe(path).get("r") == 8  # warnings are errors here


def test_a_json_recipe_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"target_modules": [' + "[]," * 2_000_000 + "[]]}")
    with within(2.0), pytest.raises(InputError, match="values, more than the"):
        read_recipe(path)


LOGS = {
    "one word": "a" * 100_000,
    "one word and an end": "a" * 100_000 + "!",
    "words": ("a" * 300 + " ") * 700,
    "module names": "xModel.forward" * 8_000,
    "quotes": "'" * 200_000,
    "matmul": "int8_linear_matmul " * 10_000,
    "router": "self.router( " * 15_000,
    "grad_norm": "'loss': 0.0 " * 15_000,
    "target": "Target module " * 14_000,
    "parameters": "target_parameters= " * 10_000,
    "brackets": "[\\w.]+' is incompatible Module '" * 6_000,
}


@pytest.mark.parametrize("name", LOGS)
def test_a_pasted_log_is_searched_in_bounded_time(name: str) -> None:
    with within(12.0):
        try:
            explain(LOGS[name])
        except InputError as error:
            assert "no rule knows this message" in str(error) or "took more than" in str(error)


@pytest.mark.parametrize("before", [0, 3_000, 5_990, 100_000])
def test_a_message_is_found_wherever_a_piece_begins(before: int) -> None:
    message = "ValueError: Target modules {'q_proj', 'v_proj'} not found in the base model."
    found = find_by_message("x " * before + message + " and more" * 200, find_rules())
    assert "LD201" in {match.rule.code for match in found}


def test_standard_input_without_end_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lora_doctor.cli import streams

    monkeypatch.setattr(streams, "PASTED_BYTES", 1_000)
    file = tmp_path / "log"
    file.write_bytes(b"x" * 1_001)
    with file.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(InputError, match="give the last lines only"):
            streams.read_input()


def test_the_limits_are_documented() -> None:
    """docs/safety.md names the numbers that stand here."""
    page = Path(__file__).parent.parent.joinpath("docs", "safety.md").read_text(encoding="utf-8")
    for number in (
        limits.JSON_BYTES >> 20, limits.TOKENIZER_BYTES >> 20, limits.HEADER_BYTES >> 20,
        limits.PYTHON_BYTES >> 20, limits.RECIPE_BYTES >> 20, limits.YAML_CHARACTERS >> 20,
        limits.LISTING_BYTES >> 20, limits.FETCHED_BYTES >> 20, limits.PASTED_BYTES >> 20,
    ):  # fmt: skip
        assert f"{number} MiB" in page
    for count in (
        limits.JSON_ITEMS, limits.YAML_ITEMS, limits.PYTHON_TOKENS, limits.REPOSITORY_IMPORTS,
        limits.LISTING_FILES, limits.CHECKPOINT_TENSORS, limits.LOG_CHARACTERS,
    ):  # fmt: skip
        assert f"{count:,}" in page
