"""Weights that a checkpoint lacks are others after every loading: what plain transformers and PEFT
make of such a folder, and what is said of it."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.results.finding import Finding
from lora_doctor.sandbox.worker import Worker
from tests.incomplete_folders import BROKEN, HEALTHY, Folder, save

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")


def recipe(folder: Folder) -> dict[str, Any]:
    return {"model_class": folder.trained, "r": 4, **folder.recipe}


def random_weights(diagnosis: lora_doctor.Diagnosis) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.rule == "LD606"]


def batch(trained: str) -> dict[str, Any]:
    """Forward arguments of a class of these tests."""
    import torch

    ids = torch.arange(3, 19).reshape(2, 8)
    if trained.startswith("ViT"):
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 28 * 28).reshape(2, 3, 28, 28)}
    if trained.startswith("Wav2Vec2"):
        return {"input_values": torch.linspace(-1, 1, 2 * 400).reshape(2, 400).sin()}
    if trained.startswith("Llava"):
        pixels = torch.linspace(-1, 1, 2 * 3 * 28 * 28).reshape(2, 3, 28, 28)
        ids[:, : patches_in_the_text()] = 60
        return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
    if trained.startswith("Bart"):
        ids[:, -1] = 2
        return {"input_ids": ids}
    if trained.startswith("T5"):
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"input_ids": ids}


def patches_in_the_text() -> int:
    """How many tokens of the text stand for a picture: from 4.46 on one for each patch."""
    from packaging.version import Version
    from transformers import __version__

    return 4 if Version(__version__) >= Version("4.46") else 1


def apart_after_loading_twice(folder: Folder, path: Path, adapter: Path) -> float:
    """How far the logits of the same adapter on the same folder lie apart, loaded twice: plain
    transformers and PEFT."""
    import peft
    import torch
    import transformers

    def base(seed: int) -> Any:
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(transformers, folder.trained).from_pretrained(path)

    config = {**copy.deepcopy(dict(folder.recipe)), "r": 4}  # PEFT adds to the lists
    peft.get_peft_model(base(0), peft.LoraConfig(**config)).save_pretrained(str(adapter))
    logits = []
    for seed in (1, 2):
        model = peft.PeftModel.from_pretrained(base(seed), str(adapter)).eval()
        with torch.no_grad():
            # The adapters are in the base model: older wrappers pass on arguments of their own.
            logits.append(model.get_base_model()(**batch(folder.trained)).logits)
    return float((logits[0] - logits[1]).abs().max() / logits[0].abs().max())


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_random_at_every_loading_is_found(
    name: str, tmp_path: Path, worker: Worker
) -> None:
    """The loss falls and all is saved: without this, such a run is called healthy."""
    folder = BROKEN[name]
    path = save(folder, tmp_path / "model")
    assert apart_after_loading_twice(folder, path, tmp_path / "adapter") > 1e-3
    diagnosis = lora_doctor.check(str(path), recipe(folder), select=["LD606"], worker=worker)
    (finding,) = random_weights(diagnosis)
    assert finding.severity == "error"
    assert all(part in finding.message for part in folder.random), finding.message


@pytest.mark.parametrize("name", HEALTHY)
def test_a_folder_that_loads_the_same_every_time_is_silent(
    name: str, tmp_path: Path, worker: Worker
) -> None:
    """Ties, heads that PEFT saves, and what begins with a constant are no finding."""
    folder = HEALTHY[name]
    path = save(folder, tmp_path / "model")
    assert apart_after_loading_twice(folder, path, tmp_path / "adapter") == 0
    diagnosis = lora_doctor.check(
        str(path), recipe(folder), depth="meta", select=["LD606"], worker=worker
    )
    assert not diagnosis.findings and "LD606" in diagnosis.passed


@pytest.mark.parametrize("name", [name for name in HEALTHY if name.startswith(("vit", "t5"))])
def test_and_trains(name: str, tmp_path: Path, worker: Worker) -> None:
    """The adapters come back on a base whose missing weights were drawn anew."""
    folder = HEALTHY[name]
    path = save(folder, tmp_path / "model")
    diagnosis = lora_doctor.check(str(path), recipe(folder), worker=worker)
    assert [finding.rule for finding in diagnosis.findings] == []
    assert diagnosis.before is not None and diagnosis.before.outcome == "passed"


def test_the_fix_trains_saves_and_finds_the_pooler_again(tmp_path: Path, worker: Worker) -> None:
    """A fix counts when the run is right after it."""
    folder = BROKEN["a masked language model has no pooler"]
    path = save(folder, tmp_path / "model")
    fixed = lora_doctor.fix(str(path), recipe(folder), unsafe_fixes=True, worker=worker)
    assert fixed.fixed_recipe is not None
    assert fixed.fixed_recipe.get("modules_to_save") == ["pooler"]
    assert fixed.after is not None and fixed.after.outcome == "passed"
    assert not fixed.remaining
    healed = Folder(folder.saved, folder.trained, dict(fixed.fixed_recipe.adapter_values()))
    assert apart_after_loading_twice(healed, path, tmp_path / "adapter") == 0


def test_on_the_real_weights_too(tmp_path: Path, worker: Worker) -> None:
    """At depth full the weights are there, and what they lack is random all the same."""
    folder = BROKEN["a masked language model has no pooler"]
    path = save(folder, tmp_path / "model")
    diagnosis = lora_doctor.check(str(path), recipe(folder), depth="full", worker=worker)
    (finding,) = random_weights(diagnosis)
    assert finding.severity == "error"


def test_nothing_is_run_at_depth_meta(tmp_path: Path, worker: Worker) -> None:
    """The headers alone tell what is random; whether the loss depends on it they do not."""
    folder = BROKEN["sound has a projector before the classifier"]
    path = save(folder, tmp_path / "model")
    diagnosis = lora_doctor.check(str(path), recipe(folder), depth="meta", worker=worker)
    (finding,) = random_weights(diagnosis)
    assert finding.severity == "warning" and "projector" in finding.message


def test_what_we_propose_saves_what_is_random(tmp_path: Path, worker: Worker) -> None:
    """Somebody who leaves the targets to us is not told that our own recipe is wrong."""
    folder = BROKEN["a masked language model has no pooler"]
    path = save(folder, tmp_path / "model")
    asked = {"model_class": folder.trained, "task_type": "SEQ_CLS"}
    diagnosis = lora_doctor.check(str(path), asked, worker=worker)
    assert not random_weights(diagnosis)
    assert diagnosis.recipe.get("modules_to_save") == ["pooler"]


def test_without_names_nothing_is_claimed(tmp_path: Path, worker: Worker) -> None:
    """A folder with a config alone says nothing about a checkpoint: skipped, with the reason."""
    folder = BROKEN["a masked language model has no pooler"]
    path = save(folder, tmp_path / "model")
    (path / "model.safetensors").unlink()
    diagnosis = lora_doctor.check(str(path), recipe(folder), depth="meta", worker=worker)
    assert not random_weights(diagnosis)
    (skipped,) = [one for one in diagnosis.skipped if one.rule == "LD606"]
    assert "model.safetensors" in skipped.reason


def test_layers_that_are_missing_whole_are_told_once(tmp_path: Path, worker: Worker) -> None:
    """LD613 says it better: which layers, and what the config announces."""
    layers = Path("tests/folders/layers_missing")
    path = Path(shutil.copytree(layers, tmp_path / "model"))
    diagnosis = lora_doctor.check(str(path), {"target_modules": ["q_proj"]}, worker=worker)
    rules = [finding.rule for finding in diagnosis.findings]
    assert "LD613" in rules and "LD606" not in rules


def test_what_was_not_drawn_anew_is_not_called_harmless(tmp_path: Path, worker: Worker) -> None:
    """In 4 bits the pooler is quantized too, and the run has the same one after loading: that the
    logits agree says nothing then."""
    pytest.importorskip("bitsandbytes")
    folder = BROKEN["a masked language model has no pooler"]
    path = save(folder, tmp_path / "model")
    asked = {**recipe(folder), "load_in_4bit": True}
    diagnosis = lora_doctor.check(str(path), asked, select=["LD606"], worker=worker)
    (finding,) = random_weights(diagnosis)
    assert finding.severity in ("warning", "error")


def test_packed_weights_hide_no_head_that_is_missing() -> None:
    """A 4-bit checkpoint has its weights under their own names, in other shapes."""
    import transformers
    from packaging.version import Version

    from lora_doctor.model.random_weights import load_names

    if Version(transformers.__version__) < Version("4.45"):
        pytest.skip(
            "it refuses other shapes on the meta device, whatever is asked: LD606 is skipped"
        )
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    own = transformers.LlamaForCausalLM(config).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in own.items():
        packed = "_proj" in name
        shapes[name] = (value.numel() // 2, 1) if packed else tuple(value.shape)
        if packed:
            shapes[f"{name}.absmax"] = (value.numel() // 64,)
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    loaded = load_names(transformers.LlamaForSequenceClassification, config, shapes)
    assert loaded.missing == ("score.weight",)
