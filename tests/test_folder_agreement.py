"""What lies in a model's folder agrees with itself: healthy folders are silent, and every broken
one is loaded by plain transformers too, so that a finding is about what really happens."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.results.finding import Finding
from lora_doctor.static.installed.environment import known_architectures
from tests.agreeing_folders import MODELS, WORDS, save, tokenizer

pytest.importorskip("torch")
pytest.importorskip("transformers")

KNOWN = known_architectures() or ()
CODES = tuple(f"LD{number}" for number in range(611, 620))
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 14483\n"


def found(folder: Path) -> list[Finding]:
    diagnosis = lora_doctor.check(str(folder), depth="static")
    return [finding for finding in diagnosis.findings if finding.rule in CODES]


def only(folder: Path) -> Finding:
    (finding,) = found(folder)
    return finding


def values(finding: Finding) -> dict[str, Any]:
    return {measurement.what: measurement.value for measurement in finding.evidence}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A folder that a test may break."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save("llama", tmp_path / "sharded", shard="10KB")


def configure(folder: Path, **entries: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return folder


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Save the tensors of a file after ``change``."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def load(folder: Path) -> Any:
    """The model and what transformers says about missing and unexpected weights."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)


# --- silence --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_healthy_folder_is_silent(name: str, tmp_path: Path) -> None:
    """Saved by transformers itself, in one file and in several."""
    for shard in ("5GB", "10KB"):
        try:
            folder = save(name, tmp_path / shard, shard)
        except AttributeError:
            pytest.skip("this transformers has no such class")
        if json.loads((folder / "config.json").read_text())["model_type"] not in KNOWN:
            pytest.skip("this transformers loads no such part of a model")
        diagnosis = lora_doctor.check(str(folder), depth="static")
        assert [f.message for f in diagnosis.findings if f.rule in CODES] == []
        assert {"LD612", "LD613", "LD614", "LD615", "LD616"} <= set(diagnosis.passed)


def test_a_placeholder_for_images_behind_the_vocabulary(copy: Path) -> None:
    """Gemma 3 is published so: the text model never sees that token."""
    tokens = tokenizer(WORDS)
    tokens.add_tokens([f"w{number}" for number in range(56, 60)])
    tokens.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    assert tokens.convert_tokens_to_ids("<image_soft_token>") == 64
    tokens.save_pretrained(copy)
    assert found(copy) == []


def test_layers_that_predict_further_tokens(tmp_path: Path) -> None:
    """DeepSeek-V3 is published with one layer more than its config has."""
    try:
        folder = save("deepseek_v3", tmp_path)
    except AttributeError:
        pytest.skip("this transformers has no such class")

    def add(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".layers.2." in name]:
            tensors[name.replace(".layers.2.", ".layers.3.")] = tensors[name].clone()

    rewrite(folder / "model.safetensors", add)
    configure(folder, num_nextn_predict_layers=1)
    assert found(folder) == []
    configure(folder, num_nextn_predict_layers=0)
    assert only(folder).rule == "LD614"


def test_an_index_without_any_weights_is_a_folder_of_small_files(sharded: Path) -> None:
    for file in sharded.glob("*.safetensors"):
        file.unlink()
    assert found(sharded) == []


# --- token ids ------------------------------------------------------------------------------


def index_error(folder: Path, text: str) -> None:
    """A forward on ``text`` by plain transformers ends in an index error."""
    import torch
    from transformers import AutoTokenizer

    model, _ = load(folder)
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    with pytest.raises(IndexError, match="index out of range"):
        model(input_ids=torch.tensor([ids]))


@pytest.mark.parametrize(
    ("added", "special", "severity"),
    [("[PAD]", "pad_token", "error"), ("<tool>", "additional_special_tokens", "warning")],
)
def test_an_added_token_without_an_embedding(
    added: str, special: str, severity: str, copy: Path
) -> None:
    tokens = tokenizer([*WORDS, "x", "y", "z", "zz"])
    tokens.add_special_tokens({special: [added] if severity == "warning" else added})
    tokens.save_pretrained(copy)
    finding = only(copy)
    assert (finding.rule, finding.severity) == ("LD611", severity)
    assert values(finding)["tokens without an embedding"] == {added: 64}
    assert values(finding)["token embeddings"] == 64
    index_error(copy, f"w1 {added}")


def test_a_tokenizer_of_another_model(copy: Path) -> None:
    words = [*WORDS, *(f"more{number}" for number in range(100))]
    tokenizer(words).save_pretrained(copy)
    finding = only(copy)
    assert (finding.rule, finding.severity) == ("LD611", "error")
    assert values(finding)["highest id"] == 159
    index_error(copy, "w1 more99")


def test_the_files_of_a_slow_tokenizer(copy: Path) -> None:
    """Older checkpoints have vocab.json and added_tokens.json, and no tokenizer.json."""
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(WORDS)}))
    assert found(copy) == []
    (copy / "added_tokens.json").write_text(json.dumps({"<x>": 64, "<y>": 65}))
    assert values(only(copy))["tokens without an embedding"] == {"<x>": 64, "<y>": 65}


def test_without_weights_the_config_and_the_class_tell(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert found(copy) == []
    tokenizer([*WORDS, "x", "y", "z", "zz", "zzz"]).save_pretrained(copy)
    finding = only(copy)
    assert finding.rule == "LD611" and finding.evidence[0].source == "vocab_size of config.json"


def test_a_padding_id_beyond_the_vocabulary(copy: Path) -> None:
    configure(copy, pad_token_id=64)
    finding = only(copy)
    assert finding.rule == "LD617" and values(finding)["pad_token_id"] == 64
    with pytest.raises(AssertionError, match="Padding_idx must be within num_embeddings"):
        load(copy)
    configure(copy, pad_token_id=-1)
    assert found(copy) == [], "what older configs have for none; it trains"
    load(copy)
    configure(copy, pad_token_id=3, eos_token_id=[2, 500])
    assert found(copy) == [], "eos_token_id is for generation"
    load(copy)


# --- embeddings and layers ------------------------------------------------------------------


@pytest.mark.parametrize("size", [56, 72])
def test_another_vocabulary_than_the_embeddings(size: int, copy: Path) -> None:
    configure(copy, vocab_size=size)
    finding = only(copy)
    assert finding.rule == "LD612"
    assert values(finding)["vocab_size"] == size
    assert values(finding)["model.embed_tokens.weight"] == "[64, 16]"
    with pytest.raises(RuntimeError, match="mismatch"):
        load(copy)


@pytest.mark.parametrize("name", ["t5", "gpt2", "bert", "whisper"])
def test_another_vocabulary_in_other_architectures(name: str, tmp_path: Path) -> None:
    """`shared`, `wte`, `word_embeddings`: one name a family."""
    assert only(configure(save(name, tmp_path), vocab_size=72)).rule == "LD612"


def test_a_head_of_another_size(copy: Path) -> None:
    rewrite(
        copy / "model.safetensors",
        lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"][:60].clone()}),
    )
    assert values(only(copy))["lm_head.weight"] == "[60, 16]"
    with pytest.raises(RuntimeError, match="mismatch"):
        load(copy)


def test_layers_that_the_checkpoint_lacks(copy: Path) -> None:
    configure(copy, num_hidden_layers=5)
    finding = only(copy)
    assert finding.rule == "LD613" and values(finding)["missing"] == [3, 4]
    _, info = load(copy)
    assert {name.split(".")[2] for name in info["missing_keys"]} == {"3", "4"}


def test_a_layer_in_the_middle_that_the_checkpoint_lacks(copy: Path) -> None:
    def drop(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    rewrite(copy / "model.safetensors", drop)
    finding = only(copy)
    assert finding.rule == "LD613" and values(finding)["missing"] == [1]
    assert "into a copy of config.json" not in finding.fixes[0].title
    assert load(copy)[1]["missing_keys"]


def test_layers_that_are_not_loaded(copy: Path) -> None:
    configure(copy, num_hidden_layers=2)
    finding = only(copy)
    assert (finding.rule, finding.severity) == ("LD614", "warning")
    assert values(finding)["left out"] == [2]
    _, info = load(copy)
    assert {name.split(".")[2] for name in info["unexpected_keys"]} == {"2"}


@pytest.mark.parametrize(
    ("name", "stack", "entry"),
    [
        ("bart", "model.encoder.layers", "encoder_layers"),
        ("whisper", "model.decoder.layers", "decoder_layers"),
        ("t5", "decoder.block", "num_decoder_layers"),
        ("gpt2", "h", "n_layer"),
        ("bert", "bert.encoder.layer", "num_hidden_layers"),
    ],
)
def test_each_stack_has_its_own_entry(name: str, stack: str, entry: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    configure(folder, **{entry: config[entry] + 1})
    finding = only(folder)
    assert finding.rule == "LD613" and entry in values(finding)
    assert any(what.endswith(stack) for what in values(finding)), values(finding)


@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
def test_each_tower_has_its_own_depth(tower: str, tmp_path: Path) -> None:
    folder = save("llava", tmp_path)
    section = json.loads((folder / "config.json").read_text())[tower]
    configure(folder, **{tower: {**section, "num_hidden_layers": 4}})
    finding = only(folder)
    assert finding.rule == "LD613" and f"{tower}.num_hidden_layers" in values(finding)


# --- files ----------------------------------------------------------------------------------


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_a_missing_shard(sharded: Path) -> None:
    gone = shards(sharded)[1]
    gone.unlink()
    finding = only(sharded)
    assert finding.rule == "LD615" and values(finding)["missing files"] == [gone.name]
    with pytest.raises(OSError, match=gone.name):
        load(sharded)


def test_a_tensor_that_no_shard_has(sharded: Path) -> None:
    """The one that ends in no error at all: the weights are not the trained ones."""
    import torch

    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    trained = load(sharded)[0].state_dict()[name].clone()
    rewrite(
        sharded / index["weight_map"][name],
        lambda tensors: tensors.update({"left": torch.zeros(1)}) or tensors.pop(name),
    )
    finding = only(sharded)
    assert finding.rule == "LD615" and values(finding)["tensors in no file"] == [name]
    # Older releases leave what memory held: filled, so that it is not the weight of the first load.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        loaded = load(sharded)[0].state_dict()[name]
    finally:
        torch.use_deterministic_algorithms(False)
    assert loaded.is_meta or not torch.equal(loaded, trained)


def test_a_tensor_that_the_index_does_not_name(sharded: Path) -> None:
    import transformers

    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    del index["weight_map"][name]
    path.write_text(json.dumps(index))
    missing = name in load(sharded)[1]["missing_keys"]
    assert missing == (int(transformers.__version__.split(".")[0]) < 5)
    assert bool(found(sharded)) == missing


@pytest.mark.parametrize("damage", ["pointer", "empty", "cut off", "web page"])
def test_a_damaged_shard(damage: str, sharded: Path) -> None:
    shard = shards(sharded)[0]
    content = {
        "pointer": POINTER.encode(),
        "empty": b"",
        "cut off": shard.read_bytes()[:-100],
        "web page": b"<!DOCTYPE html><html><body>Log in</body></html>",
    }[damage]
    shard.write_bytes(content)
    finding = only(sharded)
    assert finding.rule == "LD616" and finding.location.path == shard.name
    word = {"pointer": "Git LFS", "empty": "is empty", "cut off": "cut off", "web page": "web"}
    assert word[damage] in finding.message
    with pytest.raises(Exception, match=r"(?i)header|metadata|safetensor"):
        load(sharded)


def test_a_damaged_single_file_and_index(copy: Path, sharded: Path) -> None:
    (copy / "model.safetensors").write_text(POINTER)
    assert "Git LFS" in only(copy).message
    (sharded / "model.safetensors.index.json").write_text(POINTER)
    finding = only(sharded)
    assert (finding.rule, finding.location.path) == ("LD616", "model.safetensors.index.json")


def test_pickled_weights_are_looked_at_and_never_opened(copy: Path) -> None:
    import torch

    (copy / "model.safetensors").unlink()
    path = copy / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1000)}, path)
    assert found(copy) == []
    os.truncate(path, 2000)
    assert "is cut off" in only(copy).message
    path.write_text(POINTER)
    assert "Git LFS" in only(copy).message
    path.write_bytes(b"cposix\nsystem\n(S'touch /tmp/never'\ntR.")
    assert found(copy) == []


def test_a_tokenizer_setting_that_is_a_pointer(copy: Path) -> None:
    from transformers import AutoTokenizer

    (copy / "tokenizer_config.json").write_text(POINTER)
    assert only(copy).rule == "LD616"
    with pytest.raises(Exception, match=r"(?i)json|expecting value"):
        AutoTokenizer.from_pretrained(copy)


def test_a_config_that_is_a_pointer_is_one_line(copy: Path) -> None:
    (copy / "config.json").write_text(POINTER)
    with pytest.raises(lora_doctor.InputError, match="Git LFS pointer"):
        lora_doctor.check(str(copy), depth="static")


def test_weights_on_another_disk_are_whole(copy: Path, tmp_path: Path) -> None:
    """A link that the user made is no damage."""
    shutil.move(copy / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (copy / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert found(copy) == []


# --- tokenizer_config.json ------------------------------------------------------------------

NEWER = Path(__file__).parent / "folders" / "tokenizer_of_transformers_5"


def test_the_settings_of_transformers_5(tmp_path: Path) -> None:
    """Refused by 4 and by nobody else; the copy that the fix describes gives the same ids."""
    import transformers
    from transformers import AutoTokenizer

    five = int(transformers.__version__.split(".")[0]) >= 5
    plain = transformers.PreTrainedTokenizerFast(tokenizer_file=str(NEWER / "tokenizer.json"))
    text = "<s> a <a> b"
    wanted = plain.backend_tokenizer.from_file(str(NEWER / "tokenizer.json")).encode(text).ids
    findings = [finding for finding in found(NEWER) if finding.rule == "LD618"]
    if five:
        assert findings == []
        assert AutoTokenizer.from_pretrained(NEWER)(text)["input_ids"] == wanted
        return
    (finding,) = findings
    with pytest.raises(ValueError, match="Tokenizer class TokenizersBackend does not exist"):
        AutoTokenizer.from_pretrained(NEWER)
    title = finding.fixes[0].title
    changes = json.loads(title[title.index("{") : title.index("}") + 1])
    folder = Path(shutil.copytree(NEWER, tmp_path / "repaired"))
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), **changes}
    settings.pop("extra_special_tokens", None)
    path.write_text(json.dumps(settings))
    repaired = AutoTokenizer.from_pretrained(folder)
    assert repaired(text)["input_ids"] == wanted
    assert [item for item in found(folder) if item.rule == "LD618"] == []


def test_a_list_of_special_tokens_in_a_class_that_is_known(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(NEWER, tmp_path / "model"))
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings))
    findings = [item.rule for item in found(folder) if item.rule == "LD618"]
    try:
        AutoTokenizer.from_pretrained(folder)
    except (AttributeError, ImportError) as error:
        # Without protobuf, 4.57 says that protobuf is missing instead.
        assert "'keys'" in str(error) or "protobuf" in str(error)
        assert findings == ["LD618"]
    else:
        assert findings == []


def test_settings_of_this_transformers_are_no_finding(tmp_path: Path) -> None:
    """Whatever it saves itself, it reads."""
    tokens = tokenizer(WORDS)
    tokens.add_special_tokens({"additional_special_tokens": ["<a>", "<b>"]})
    tokens.chat_template = "{{ messages }}"
    folder = save("llama", tmp_path)
    tokens.save_pretrained(folder)
    assert [finding.rule for finding in found(folder) if finding.rule != "LD611"] == []


# --- what it costs --------------------------------------------------------------------------


def test_no_torch_and_no_transformers(tmp_path: Path) -> None:
    """The whole of it from files, as at any static depth; a large header too."""
    header = {
        f"model.layers.{layer}.mlp.experts.{expert}.w{part}.weight": {
            "dtype": "BF16", "shape": [0, 0], "data_offsets": [0, 0],
        }
        for layer in range(20) for expert in range(128) for part in (1, 2, 3)
    }  # fmt: skip
    content = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    config = {"model_type": "llama", "num_hidden_layers": 24, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = (
        "import sys, lora_doctor\n"
        f"d = lora_doctor.check({str(tmp_path)!r}, depth='static')\n"
        "print([f.rule for f in d.findings if f.rule > 'LD610'])\n"
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['LD613']"


# --- the dtype in the headers, and what computes --------------------------------------------------


def stored_in_bfloat16(folder: Path, says: str | None) -> Path:
    """The folder with weights in bfloat16, and a config that says another dtype or none."""
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = {name: value.to(torch.bfloat16) for name, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    if says is not None:
        config["torch_dtype"] = says
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("says", "asked", "found"),
    [
        (None, "float16", True),
        ("float32", "float16", True),
        ("float16", "auto", True),
        ("float16", "bfloat16", False),
        ("bfloat16", "auto", False),
        (None, "auto", False),
    ],
)
def test_what_is_stored_in_bfloat16_and_computes_in_float16(
    copy: Path, says: str | None, asked: str, found: bool
) -> None:
    """config.json may be silent, or wrong: the headers say what the weights are."""
    import torch
    import transformers

    folder = stored_in_bfloat16(copy, says)
    argument = {"torch_dtype": asked if asked == "auto" else getattr(torch, asked)}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **argument)
    assert (model.dtype is torch.float16) is found, "what plain transformers makes of it"
    recipe = {"dtype": asked, "target_modules": ["q_proj"]}
    diagnosis = lora_doctor.check(str(folder), recipe, depth="static")
    assert ("LD409" in [item.rule for item in diagnosis.findings]) is found
