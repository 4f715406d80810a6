"""A recipe format is one file that says how it spells each key; the file is edited as it is
spelled, and never gets a second key beside the user's."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import REMOVE, Edit
from lora_doctor.recipe.files import formats
from lora_doctor.recipe.files.format import find_formats
from lora_doctor.recipe.files.read_write import apply_edits, holds_edit, read_recipe, write_edits
from tests.package_copy import copy_package
from tests.package_copy import lora_doctor_from as run

#: A format that writes values as LLaMA-Factory does, under names that no framework uses: a real
#: format of the package must not claim the files of these tests.
FACTORY = '''\
"""A file of a framework that joins names with commas and has one entry for quantization."""

from lora_doctor.recipe.files.spelling import Spelling, Spellings

NAME = "sample file"
SPECIFICITY = 20
COMPLETE = False
IGNORES_UNKNOWN = False


def names(text):
    if not isinstance(text, str):
        raise ValueError("is a text with names separated by commas")
    return "all-linear" if text == "all" else [name.strip() for name in text.split(",")]


def joined(value):
    if value == "all-linear":
        return "all"
    if not isinstance(value, list):
        raise ValueError("takes names only")
    return ",".join(value)


SPELLINGS = Spellings(
    Spelling("target_modules", "sample_names", names, joined),
    Spelling("r", "sample_rank"),
    Spelling(
        "load_in_4bit", "sample_bits", lambda bits: bits == 4, lambda on: 4 if on else None
    ),
    Spelling(
        "load_in_8bit", "sample_bits", lambda bits: bits == 8, lambda on: 8 if on else None
    ),
    same_name=lambda key: key in ("lora_alpha", "lora_dropout", "bf16", "learning_rate"),
)


def recognises(values):
    return "sample_kind" in values
'''
SETUP = """\
### model
sample_model: org/model   # not ours to judge

### method
sample_kind: lora
sample_names: q_proj,v_proj  # which
sample_rank: 8
sample_length: 2048
"""


@pytest.fixture
def framework(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The format of the test, beside those of the package."""
    folder = tmp_path / "formats"
    folder.mkdir()
    folder.joinpath("a_framework.py").write_text(FACTORY)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])


def write(folder: Path, text: str, name: str = "setup.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_the_formats_are_asked_by_what_they_demand() -> None:
    """The order, and that ours are among them: another format may stand anywhere above the last."""
    found = [(one.NAME, one.SPECIFICITY) for one in find_formats()]
    assert found == sorted(found, key=lambda one: (-one[1], one[0]))
    assert {("PEFT adapter config", 10), ("recipe file", 0)} <= set(found)
    assert found[-1] == ("recipe file", 0), "it takes what is left"


@pytest.mark.usefixtures("framework")
def test_a_format_is_read_as_it_spells(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, SETUP))
    assert recipe.values == {"target_modules": ["q_proj", "v_proj"], "r": 8}
    assert not recipe.complete
    with pytest.raises(InputError, match=r"sample_names must be a text with names .*, not \['q'\]"):
        read_recipe(write(tmp_path, "sample_kind: lora\nsample_names: [q]\n"))


@pytest.mark.usefixtures("framework")
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_edit_is_written_as_the_format_spells(tmp_path: Path, newline: str) -> None:
    text = SETUP.replace("\n", newline)
    path = write(tmp_path, text)
    edits = [Edit("target_modules", ["qkv_proj", "o_proj"]), Edit("r", 16)]
    apply_edits(path, edits)
    want = text.replace("q_proj,v_proj  #", "'qkv_proj,o_proj'  #").replace("rank: 8", "rank: 16")
    assert path.read_bytes().decode() == want
    assert apply_edits(path, edits) is None, "twice is once"
    assert write_edits(path, [Edit("r", REMOVE)]) == want.replace(f"sample_rank: 16{newline}", "")


@pytest.mark.usefixtures("framework")
def test_a_new_key_is_spelled_as_the_format_does(tmp_path: Path) -> None:
    path = write(tmp_path, '{"sample_kind": "lora"}', "setup.json")
    edits = [Edit("target_modules", "all-linear"), Edit("r", 4), Edit("lora_alpha", 8)]
    new = json.loads(write_edits(path, edits))
    assert new == {"sample_kind": "lora", "sample_names": "all", "sample_rank": 4, "lora_alpha": 8}


@pytest.mark.usefixtures("framework")
def test_what_a_format_cannot_say_is_left_to_the_prescription(tmp_path: Path) -> None:
    path = write(tmp_path, SETUP)
    regex = Edit("target_modules", r".*\.(q|v)_proj")
    assert not holds_edit(path, path.read_bytes(), regex)
    assert not holds_edit(path, path.read_bytes(), Edit("use_dora", True))
    assert holds_edit(path, path.read_bytes(), Edit("target_modules", ["qkv_proj"]))
    with pytest.raises(InputError, match=r"sample_names takes names only, not .*; use the prescr"):
        write_edits(path, [regex])
    with pytest.raises(InputError, match="a sample file has no key 'use_dora'"):
        write_edits(path, [Edit("use_dora", True)])


@pytest.mark.usefixtures("framework")
def test_two_keys_of_one_entry_are_changed_together_or_not_at_all(tmp_path: Path) -> None:
    """A file is only written when it reads back as the recipe that was asked for."""
    path = write(tmp_path, SETUP + "sample_bits: 8\n")
    both = [Edit("load_in_8bit", False), Edit("load_in_4bit", True)]
    assert write_edits(path, both) == SETUP + "sample_bits: 4\n"
    with pytest.raises(InputError, match="cannot be edited in place"):
        write_edits(path, [Edit("load_in_4bit", True)])


@pytest.mark.parametrize(
    ("text", "edit", "new"),
    [
        ("rank: 8\n", Edit("r", 16), "rank: 16\n"),
        ("lora_rank: 8\n", Edit("r", 16), "lora_rank: 16\n"),
        ("lora_r: 8  # c\n", Edit("r", 16), "lora_r: 16  # c\n"),
        ("torch_dtype: bf16\n", Edit("dtype", "float16"), "torch_dtype: float16\n"),
        ("alpha: 8\n", Edit("lora_alpha", REMOVE), "{}\n"),
        ("lora_target_modules:\n- q\n", Edit("target_modules", ["q", "v"]),
         "lora_target_modules:\n- q\n- v\n"),
        ("lora_task_type: SEQ_CLS\n", Edit("task_type", None), "lora_task_type: null\n"),
        # No name that PEFT would read: it is a recipe file, and edited under the user's key.
        ("peft_type: LORA\nlora_target_modules: [q]\n", Edit("target_modules", ["v"]),
         "peft_type: LORA\nlora_target_modules: [v]\n"),
        ("peft_type: LOHA\nalpha: 8\n", Edit("lora_alpha", 4), "peft_type: LOHA\nalpha: 4\n"),
    ],
)  # fmt: skip
def test_the_name_that_stands_in_the_file_is_the_one_that_is_edited(
    tmp_path: Path, text: str, edit: Edit, new: str
) -> None:
    path = write(tmp_path, text)
    assert write_edits(path, [edit]) == new
    write(tmp_path, new)
    assert write_edits(path, [edit]) == new, "twice is once"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 8, "rank": 8}, "'r' and 'rank' both set r; keep one"),
        ({"lora_r": 8, "lora_rank": 8}, "'lora_r' and 'lora_rank' both set r; keep one"),
        ({"dtype": "bf16", "torch_dtype": "bf16"}, "'dtype' and 'torch_dtype' both set dtype"),
        (
            {"target_modules": ["q"], "lora_target_modules": ["v"]},
            "'target_modules' and 'lora_target_modules' both set target_modules; keep one",
        ),
        ({"peft_type": "LOHA", "lora_alpha": 1, "alpha": 1}, "'lora_alpha' and 'alpha' both set"),
    ],
)
def test_two_spellings_of_one_key_are_one_line_that_names_both(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, json.dumps(values), "setup.json")
    for action in (read_recipe, lambda p: write_edits(p, [Edit("r", 1)])):
        with pytest.raises(InputError) as caught:
            action(path)
        assert str(caught.value).startswith(f"{path}: {message}")
        assert "\n" not in str(caught.value)


def test_a_format_that_lacks_a_part_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "formats"
    folder.mkdir()
    folder.joinpath("half_a_format.py").write_text('NAME = "half"\n')
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    with pytest.raises(InputError, match="half_a_format: has no SPECIFICITY"):
        read_recipe(write(tmp_path, "r: 8\n"))
    turned = FACTORY.replace('"r", "sample_rank"', '"sample_rank", "r"')
    folder.joinpath("half_a_format.py").write_text(turned)
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "lora_doctor.recipe.files.formats.half_a_format")
    with pytest.raises(InputError, match=r"Spelling\('sample_rank', 'r'\) names the entry"):
        read_recipe(write(tmp_path, "r: 8\n"))


@pytest.mark.slow
def test_a_file_in_formats_is_fixed_in_place(tmp_path: Path) -> None:
    """The whole way: one file added to the package, and the command line reads the framework's
    file, finds what is wrong in it, and mends it in the framework's own spelling."""
    package = copy_package(tmp_path / "copy")
    package.joinpath("lora_doctor/recipe/files/formats/a_framework.py").write_text(FACTORY)
    work = tmp_path / "work"
    work.mkdir()
    path = write(work, SETUP)
    fix = ("fix", "arch:gpt2", "--recipe", "setup.yaml", "--apply", "--output-format", "json")
    done = run(package, *fix, cwd=work)
    assert "wrote setup.yaml" in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found["recipe"]["values"]["target_modules"] == ["q_proj", "v_proj"]
    assert found["verification"]["after"]["outcome"] == "passed"
    text = path.read_bytes().decode()
    assert text == SETUP.replace("q_proj,v_proj", "c_attn")
    assert (work / "setup.yaml.bak").read_bytes().decode() == SETUP
    again = run(package, *fix, cwd=work)
    assert again.returncode == 0, again.stderr
    assert path.read_bytes().decode() == text
    assert not (work / "setup.yaml.bak.1").exists()
