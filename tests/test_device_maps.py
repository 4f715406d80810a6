"""``device_map`` in a script whose arguments leave placing the model to DeepSpeed or FSDP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.prescription.write_fix import Plan

_ARGUMENTS = 'args = TrainingArguments("out", BY)\n'
_LOADED = 'model = AutoModelForCausalLM.from_pretrained("org/model", device_map="auto")\n'
_HEAD = (
    "from peft import LoraConfig, get_peft_model\n"
    "from transformers import AutoModelForCausalLM, Trainer, TrainingArguments\n"
)
_TAIL = (
    'model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))\n'
    "Trainer(model=model, args=args, train_dataset=[]).train()\n"
)


@pytest.fixture(autouse=True)
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub is never asked; the configs of DeepSpeed lie beside the script."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    for stage in (2, 3):
        text = json.dumps({"zero_optimization": {"stage": stage}, "bf16": {"enabled": "auto"}})
        (tmp_path / f"zero{stage}.json").write_text(text)


def found(tmp_path: Path, text: str) -> list[Any]:
    path = tmp_path / "train.py"
    path.write_text(text)
    return [
        (one.severity, one.location.line)
        for one in lora_doctor.check(str(path), depth="static").findings
        if one.rule == "LD546"
    ]


@pytest.mark.parametrize(
    ("by", "before", "severity"),
    [
        ('deepspeed="zero3.json"', True, "error"),
        ('deepspeed={"zero_optimization": {"stage": 3}}', True, "error"),
        ('deepspeed="zero3.json"', False, "warning"),  # transformers does not know of it yet
        ('deepspeed="zero2.json"', True, "warning"),
        ('fsdp="full_shard auto_wrap"', True, "warning"),
        ('fsdp=["full_shard"]', False, "warning"),
    ],
)
def test_two_that_place_the_model_are_found(
    tmp_path: Path, by: str, before: bool, severity: str
) -> None:
    arguments = _ARGUMENTS.replace("BY", by)
    order = [arguments, _LOADED] if before else [_LOADED, arguments]
    text = _HEAD + "".join(order) + _TAIL
    assert found(tmp_path, text) == [(severity, 4 if before else 3)]


@pytest.mark.parametrize(
    ("by", "loaded"),
    [
        ('deepspeed="zero3.json"', _LOADED.replace(', device_map="auto"', "")),
        ('deepspeed="zero2.json"', _LOADED.replace('"auto"', '{"": 0}')),
        ("deepspeed=None", _LOADED),
        ('fsdp=""', _LOADED),
        ('fsdp=["full_shard"]', _LOADED.replace('"auto"', "None")),
        ("bf16=False", _LOADED),
    ],
)
def test_one_that_places_it_is_healthy(tmp_path: Path, by: str, loaded: str) -> None:
    assert not found(tmp_path, _HEAD + _ARGUMENTS.replace("BY", by) + loaded + _TAIL)


def test_the_device_map_that_makes_loading_fail_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    text = _HEAD + _ARGUMENTS.replace("BY", 'deepspeed="zero3.json"') + _LOADED + _TAIL
    path.write_text(text)
    plan = Plan.make(str(path), str(tmp_path), write=True)
    diagnosis = plan.with_diff(lora_doctor.fix(str(path), depth="static", select=["LD546"]))
    plan.write(diagnosis)
    assert path.read_text() == text.replace(', device_map="auto"', "")
