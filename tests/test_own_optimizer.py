"""A script that brings its own optimizer: the learning rate of the Trainer's arguments is then a
factor of it, or nobody's."""

from __future__ import annotations

from pathlib import Path

import pytest

import lora_doctor

_SCRIPT = """
from peft import LoraConfig, get_peft_model
from prodigyopt import Prodigy
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("{model}")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))
args = TrainingArguments("out", learning_rate={rate})
{trainer}.train()
"""
_PLAIN = "Trainer(model=model, args=args, train_dataset=[])"
_HANDED = _PLAIN.replace("[])", "[], optimizers=(Prodigy(model.parameters(), lr=1.0), None))")
_NOTHING_HANDED = _PLAIN.replace("[])", "[], optimizer_cls_and_kwargs=None)")
_MADE = """\
class Own(Trainer):
    def create_optimizer(self):
        self.optimizer = Prodigy(self.model.parameters(), lr=self.args.learning_rate)
        return self.optimizer
Own(model=model, args=args, train_dataset=[])"""


@pytest.mark.parametrize(
    ("trainer", "rate", "found"),
    [
        (_PLAIN, "1.0", ["LD583"]),
        (_PLAIN, "0.0", ["LD510"]),
        (_NOTHING_HANDED, "1.0", ["LD583"]),
        (_HANDED, "1.0", []),
        (_HANDED, "0.0", []),
        (_MADE, "1.0", []),
    ],
)
def test_the_learning_rate_is_judged_for_the_trainers_own_optimizer(
    tmp_path: Path, trainer: str, rate: str, found: list[str]
) -> None:
    path = tmp_path / "train.py"
    model = Path(__file__).parent / "launched" / "llama"
    path.write_text(_SCRIPT.format(model=model, rate=rate, trainer=trainer))
    diagnosis = lora_doctor.check(path, depth="static", select=["LD510", "LD583"])
    assert [one.rule for one in diagnosis.findings] == found
