"""Trainers that refuse what they are given, made by their own class, where TRL is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import lora_doctor
from lora_doctor.results.diagnosis import Diagnosis

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("trl", "datasets")),
    reason="needs TRL",
)
HEAD = """\
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
config = LoraConfig(r=4, target_modules=["qkv_proj"], task_type="CAUSAL_LM")
"""


def check(tmp_path: Path, call: str) -> Diagnosis:
    path = tmp_path / "train.py"
    folder = Path(__file__).resolve().parents[1] / "examples" / "phi3-mini"
    path.write_text(HEAD.replace("FOLDER", str(folder)) + call, encoding="utf-8")
    return lora_doctor.check(str(path), depth="tiny", select=["LD550"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            'DPOTrainer(model, args=DPOConfig("out", sync_ref_model=True), '
            "train_dataset=load(), peft_config=config)\n",
            "sync_ref_model=True",
        ),
        (
            'SFTTrainer(model, args=SFTConfig("out", completion_only_loss=True), '
            "train_dataset=load(), peft_config=config, formatting_func=lambda row: row)\n",
            "formatting function",
        ),
    ],
)
def test_what_the_trainer_refuses(tmp_path: Path, call: str, said: str) -> None:
    """Each value is valid by itself; the trainer says that they do not go together."""
    (finding,) = check(tmp_path, call).findings
    assert finding.rule == "LD550" and said in finding.message
    assert finding.location.line == 7


def test_what_the_trainer_takes(tmp_path: Path) -> None:
    """Rows of a kind that it does not take say nothing about the set-up."""
    call = (
        'SFTTrainer(model, args=SFTConfig("out", assistant_only_loss=True, packing=True), '
        "train_dataset=load(), peft_config=config)\n"
    )
    diagnosis = check(tmp_path, call)
    assert not diagnosis.findings
    assert "LD550" in diagnosis.passed
