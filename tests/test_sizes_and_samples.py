"""Weights of other shapes than their config makes, and classifiers that take one
sample at a time: plain transformers raises on both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.model.random_weights import load_names
from lora_doctor.sandbox.worker import Worker

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("edits", "hit"),
    [
        ({}, set()),
        ({"intermediate_size": 64}, {"gate_proj", "up_proj", "down_proj"}),
        ({"num_key_value_heads": 4}, {"k_proj", "v_proj"}),
    ],
)
def test_shapes_are_compared_by_the_loading_itself(
    edits: dict[str, int], hit: set[str], tmp_path: Path
) -> None:
    cls = transformers.LlamaForCausalLM
    model = cls(transformers.LlamaConfig(**SIZES))
    config = transformers.LlamaConfig(**{**SIZES, **edits})
    found = load_names(cls, config, shapes(model)).other_sizes
    assert {item.name.split(".")[-2] for item in found} == hit
    model.save_pretrained(str(tmp_path))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **edits}))
    if not hit:
        cls.from_pretrained(str(tmp_path))
        return
    with pytest.raises((RuntimeError, ValueError), match=r"mismatch"):
        cls.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("pad", [None, 0])
def test_a_classifier_without_padding_id(pad: int | None, tmp_path: Path, worker: Worker) -> None:
    config = transformers.LlamaConfig(**SIZES, pad_token_id=pad, num_labels=3)
    model = transformers.LlamaForSequenceClassification(config)
    ids = torch.arange(3, 19).reshape(2, 8)
    if pad is None:
        with pytest.raises(ValueError, match="batch sizes > 1"):
            model(input_ids=ids, labels=torch.tensor([0, 1]))
    else:
        model(input_ids=ids, labels=torch.tensor([0, 1]))
    model.save_pretrained(str(tmp_path))
    recipe = {"task_type": "SEQ_CLS", "target_modules": ["q_proj", "v_proj"]}
    found = lora_doctor.check(str(tmp_path), recipe, worker=worker).findings
    assert [item.rule for item in found] == (["LD633"] if pad is None else []), found


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.safetensors", False),
        ("model-q4_k_m.gguf", True),
        ("consolidated.safetensors", True),
        ("model-00001-of-00001.safetensors", True),
    ],
)
def test_weights_under_a_name_that_is_not_looked_for(name: str, told: bool, tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    model.save_pretrained(str(tmp_path), safe_serialization=True)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    if told:
        with pytest.raises(OSError, match="no file named"):
            transformers.LlamaForCausalLM.from_pretrained(str(tmp_path))
    found = lora_doctor.check(str(tmp_path), depth="static").findings
    assert [item.rule for item in found] == (["LD615"] if told else []), found
