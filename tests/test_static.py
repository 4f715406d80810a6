"""Local folders: good ones become evidence, bad ones one line; hostile ones reach nothing."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.static import model_files
from lora_doctor.static.model_files import gather_static
from lora_doctor.static.tokenizer_file import read_tokenizer_file
from lora_doctor.static.weights import parse_header, read_header, read_weights

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of this file say the same with and without transformers installed."""
    monkeypatch.setattr(
        model_files, "known_architectures", lambda: ("llama", "mistral", "qwen2_vl")
    )


def model(folder: Path, config: object = None, **files: object) -> Path:
    """A model folder; `files` maps names (with `__` for `.`) to JSON objects or bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        path.write_bytes(data)
    return folder


def safetensors(tensors: dict[str, tuple[str, list[int]]], payload: int | None = None) -> bytes:
    """A safetensors file with zero weights; `payload` overrides the number of data bytes."""
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        count = 1
        for dimension in shape:
            count *= dimension
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [end, end + count * sizes[dtype]],
        }
        end += count * sizes[dtype]
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + bytes(end if payload is None else payload)


def refusal(folder: Path, source: str = "m") -> str:
    with pytest.raises(InputError) as caught:
        gather_static(folder, source=source)
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text
    return text


# --- good folders ---------------------------------------------------------------------------


def test_a_model_folder(tmp_path: Path) -> None:
    found = gather_static(
        model(
            tmp_path,
            generation_config__json={"max_length": 20},
            model__safetensors=safetensors({"a.weight": ("BF16", [3, 4]), "b": ("F32", [])}),
            training_args__bin=b"\x80never opened",
        ),
        source="./m",
    )
    assert (found.model_type, found.architectures) == ("llama", ("LlamaForCausalLM",))
    assert found.native_dtype == ("bfloat16", "torch_dtype")
    assert found.generation_config.require() == {"max_length": 20}
    assert found.generation_config.source == "./m/generation_config.json"
    assert found.generation_config.seconds >= 0
    assert found.pickled_weights == ("training_args.bin",)
    weights = found.weights.require()
    assert weights.tensors["a.weight"].shape == (3, 4)
    assert weights.dtypes == {"BF16": 12, "F32": 1}
    assert found.weights is found.weights, "gathered once"
    assert found.tokenizer.value is None
    assert found.tokenizer.reason == "tokenizer.json is not there"
    with pytest.raises(EvidenceError, match="not there"):
        found.tokenizer.require()


def test_dtype_comes_from_the_parts_when_they_agree(tmp_path: Path) -> None:
    config = {"model_type": "llama", "text_config": {"dtype": "torch.float16"}}
    found = gather_static(model(tmp_path, config), source="m")
    assert found.native_dtype == ("float16", "text_config.dtype")
    config["vision_config"] = {"torch_dtype": "float32"}
    assert gather_static(model(tmp_path, config), source="m").native_dtype is None


def test_sharded_weights_and_one_that_is_missing(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    folder = model(tmp_path, model__safetensors__index__json=index)
    (folder / "model-1.safetensors").write_bytes(safetensors({"a": ("F32", [2])}))
    weights = read_weights(folder)
    assert list(weights.tensors) == ["a"] and weights.tensors["a"].file == "model-1.safetensors"
    assert weights.unread == {"model-2.safetensors": "'model-2.safetensors' is named but not there"}


def test_the_hub_cache_links_to_its_blobs(tmp_path: Path) -> None:
    """A snapshot is all links out of its folder, into the blobs of the same repository."""
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    index = {"weight_map": {"a": "one.safetensors"}}
    for name, content in {
        "config.json": json.dumps(LLAMA).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "one.safetensors": safetensors({"a": ("F32", [2])}),
    }.items():
        (repository / "blobs" / name).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    found = gather_static(snapshot, source="org/name")
    assert found.weights.require().tensors["a"].shape == (2,)


def test_no_import_and_no_time(tmp_path: Path) -> None:
    folder = model(tmp_path, model__safetensors=safetensors({"a": ("F32", [2])}))
    code = (
        "import sys, time; from pathlib import Path;"
        "from lora_doctor.static.model_files import gather_static as g;"
        "start = time.process_time(); s = g(Path(sys.argv[1]), source='m');"
        "s.weights, s.listing, s.tokenizer; spent = time.process_time() - start;"
        "bad = {'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules);"
        "sys.exit(f'{bad} {spent}' if bad or spent > 0.5 else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


# --- bad folders ----------------------------------------------------------------------------


def test_folders_that_are_none(tmp_path: Path) -> None:
    assert "there is no such folder" in refusal(tmp_path / "missing", "missing")
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    assert "no config.json (but notes.txt)" in refusal(tmp_path / "other")
    model(tmp_path / "outer" / "inner")
    assert f"did you mean {Path('m') / 'inner'}" in refusal(tmp_path / "outer")
    refusal(Path("a\0b"))


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert "holds an adapter, no model; give the base model ('org/base')" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"not json", "is not JSON: Expecting value at line 1 column 1"),
        (b"[1]", "holds a list instead of an object"),
        (b"null", "holds null instead of an object"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "holds a number that is too long"),
        (b"", "is not JSON"),
        (b"{}", "has no 'model_type' and no 'auto_map'"),
        (b'{"model_type": "lama"}', "knows no architecture 'lama'; did you mean 'llama'?"),
        (b'{"model_type": "Qwen2-VL"}', "did you mean 'qwen2_vl'?"),
        (b'{"model_type": "zzz"}', "knows no architecture 'zzz'; a newer transformers may"),
        (b'{"model_type": 3}', "'model_type' is 3, not text"),
        (b'{"model_type": "llama", "architectures": "X"}', "not a list of class names"),
        (b'{"model_type": "llama", "quantization_config": 1}', "'quantization_config' is 1"),
        (b'{"auto_map": {"AutoModel": "../../x.Y"}}', "'../../x.Y', not a module.Class"),
        (b'{"auto_map": {"AutoModel": 7}}', "'auto_map' names 7"),
    ],
)
def test_configs_that_are_none(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("hidden_size", -1, "cannot be negative"),
        ("hidden_size", 0, "at least one"),
        ("hidden_size", "64", "not a whole number"),
        ("hidden_size", 64.5, "not a whole number"),
        ("hidden_size", True, "not a whole number"),
        ("hidden_size", float("nan"), "not a whole number"),
        ("num_hidden_layers", 1_000_000, "more than any model has (at most 10,000)"),
        ("vocab_size", 10**18, "more than any model has"),
        ("num_attention_heads", [4, -4], "cannot be negative"),
        ("text_config", {"num_hidden_layers": 10**6}, "'text_config.num_hidden_layers'"),
        ("n_layer", 0, "at least one"),
    ],
)
def test_absurd_sizes_name_file_and_key(
    tmp_path: Path, key: str, value: object, expected: str
) -> None:
    text = refusal(model(tmp_path, LLAMA | {key: value}))
    assert text.startswith("m/config.json: ") and expected in text and key in text


def test_sizes_that_are_none_on_purpose(tmp_path: Path) -> None:
    config = LLAMA | {"num_local_experts": 0, "head_dim": None, "encoder_layers": 0}
    assert gather_static(model(tmp_path, config), source="m").config == config


# --- hostile folders ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "C:/x", "..\\x"])
def test_an_index_cannot_lead_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(safetensors({"s": ("F32", [1])}))
    folder = model(
        tmp_path / "m", model__safetensors__index__json={"weight_map": {"a": name, "b": "ok.st"}}
    )
    (folder / "ok.st").write_bytes(safetensors({"b": ("F32", [1])}))
    weights = read_weights(folder)
    assert list(weights.tensors) == ["b"]
    assert "leads out" in weights.unread[name] or "not a file name" in weights.unread[name]


def test_a_link_cannot_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(safetensors({"s": ("F32", [1])}))
    folder = model(tmp_path / "m", model__safetensors__index__json={"weight_map": {"a": "link"}})
    (folder / "link").symlink_to("../secret")
    with pytest.raises(EvidenceError, match="is a link out of the model's folder"):
        read_weights(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert "config.json is not a file" in refusal(tmp_path)


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    text = refusal(model(tmp_path, {"model_type": "\x1b[2Jx\u202e\n"}))
    assert text.isprintable()


# --- safetensors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cut off: 0 bytes"),
        (struct.pack("<Q", 1 << 62) + b"{}", "announces a header of"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (safetensors({"a": ("F32", [8])}, payload=7), "cut off: 'a' ends at byte 32"),
        (struct.pack("<Q", 4) + b"nope", "is not JSON"),
        (struct.pack("<Q", 4) + b"[  ]", "is not an object"),
    ],
)
def test_damaged_files_say_how(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(EvidenceError) as caught:
        read_header(path)
    assert expected in str(caught.value) and "model.safetensors" in str(caught.value)


def test_headers_agree_with_the_library(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    np = pytest.importorskip("numpy")
    path = tmp_path / "model.safetensors"
    arrays = {"x": np.zeros((2, 3), np.float16), "y": np.zeros((0, 5), np.int8), "z": np.float32(1)}
    numpy.save_file({k: np.asarray(v) for k, v in arrays.items()}, path, metadata={"a": "b"})
    tensors, metadata = read_header(path)
    assert {k: (v.dtype, v.shape) for k, v in tensors.items()} == {
        "x": ("F16", (2, 3)),
        "y": ("I8", (0, 5)),
        "z": ("F32", ()),
    }
    assert metadata == {"a": "b"}


# --- tokenizer.json -------------------------------------------------------------------------


def tokenizer(merges: object, words: int) -> dict[str, Any]:
    vocabulary = {"merges": 0, '"merges": [': 1} | {f"w{i}": i for i in range(words)}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "<s>"}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first", "split": False},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "vocab": vocabulary, "merges": merges},
    }


@pytest.mark.parametrize("words", [3, 40_000])
@pytest.mark.parametrize(
    ("merges", "form"), [(["a b"], "strings"), ([["a", "b"]], "pairs"), ([], "empty")]
)
def test_tokenizer_parts_whatever_the_size(
    tmp_path: Path, merges: object, form: str, words: int
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer(merges, words), indent=2 if words > 3 else None))
    found = read_tokenizer_file(path)
    assert (found.model_type, found.merges) == ("BPE", form)
    assert found.sections == {k: v for k, v in tokenizer([], 0).items() if k != "model"}


def test_a_large_tokenizer_is_quick_and_a_cut_one_is_found(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    text = json.dumps(tokenizer([["a", "b"]] * 300_000, 300_000))
    path.write_text(text)
    start = time.process_time()
    read_tokenizer_file(path)
    assert time.process_time() - start < 0.25
    path.write_text(text[:-50])
    with pytest.raises(EvidenceError, match="cut off"):
        read_tokenizer_file(path)


def test_a_large_tokenizer_in_another_order_is_parsed_whole(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    parts = tokenizer(["a b"], 40_000)
    path.write_text(json.dumps({"model": parts.pop("model"), **parts}))
    assert read_tokenizer_file(path).sections["pre_tokenizer"]["type"] == "Metaspace"


# --- properties -----------------------------------------------------------------------------

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=15,
)
CONFIG_KEYS = st.sampled_from(
    [
        "model_type", "architectures", "auto_map", "hidden_size", "num_hidden_layers", "dtype",
        "torch_dtype", "quantization_config", "text_config", "vocab_size", "rope_scaling",
    ]
)  # fmt: skip
CONFIGS = st.dictionaries(
    CONFIG_KEYS | st.text(max_size=5), ANY_JSON | st.just("llama"), max_size=6
)
LENIENT = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@LENIENT
@given(config=ANY_JSON | CONFIGS | CONFIGS.map(lambda c: {**LLAMA, **c}))
@example(config={"auto_map": {"AutoModel": "--.x"}})
def test_any_json_gives_evidence_or_one_line(tmp_path: Path, config: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        found = gather_static(tmp_path, source="m")
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert found.native_dtype is None or isinstance(found.native_dtype[0], str)
    assert isinstance(found.architectures, tuple) and isinstance(found.auto_map, tuple)


@LENIENT
@given(content=st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes_give_evidence_or_one_line(tmp_path: Path, content: bytes) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(content)
    try:
        found = gather_static(tmp_path, source="m")
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        (tmp_path / "config.json").write_text(json.dumps(LLAMA))
        found = gather_static(tmp_path, source="m")
    for piece in (found.weights, found.tokenizer):
        assert (piece.value is None) == bool(piece.reason)


TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "NEW"]) | ANY_JSON,
        "shape": st.lists(st.integers(0, 5), max_size=3) | ANY_JSON,
        "data_offsets": st.lists(st.integers(0, 500), min_size=2, max_size=2) | ANY_JSON,
    },
)


@LENIENT
@given(
    header=st.dictionaries(st.text(max_size=10) | st.just("__metadata__"), TENSOR | ANY_JSON)
    | ANY_JSON,
    payload=st.none() | st.integers(0, 1000),
)
def test_any_header_gives_tensors_or_a_reason(header: object, payload: int | None) -> None:
    try:
        tensors, metadata = parse_header(json.dumps(header).encode(), "f", payload)
    except EvidenceError as error:
        assert "f" in str(error) and "\n" not in str(error)
        return
    assert all(tensor.elements >= 0 for tensor in tensors.values())
    assert all(isinstance(value, str) for value in metadata.values())


@LENIENT
@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.lists(st.integers(0, 7), max_size=4),
        max_size=5,
    )
)
def test_every_good_header_is_read_back(tmp_path: Path, shapes: dict[str, list[int]]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({name: ("F16", shape) for name, shape in shapes.items()}))
    tensors, _ = read_header(path)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == shapes
