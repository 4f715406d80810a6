"""A classifier that gets its adapter by the model's own `add_adapter`, read in a script."""

from __future__ import annotations

from pathlib import Path

import pytest

import lora_doctor
from lora_doctor.recipe.program.objects import adds_without_wrapper
from lora_doctor.recipe.program.read_setup import read_setup

BASE = Path(__file__).parent / "folders" / "base_without_head"
SCRIPT = """\
from peft import LoraConfig, get_peft_model
from transformers import {loader}, Trainer

model = {loader}.from_pretrained({base!r})
config = LoraConfig(target_modules=["q_proj"], r=4, task_type="{task}"{more})
{adapt}
Trainer(model=model, train_dataset=rows).train()
"""
ADD = "model.add_adapter(config)"
CLASSIFIER = ("AutoModelForSequenceClassification", "SEQ_CLS")


def script(tmp_path: Path, more: str, adapt: str) -> Path:
    path = tmp_path / "train.py"
    loader, task = CLASSIFIER
    text = SCRIPT.format(loader=loader, task=task, more=more, adapt=adapt, base=str(BASE))
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("more", "found"), [("", True), (", modules_to_save=['score']", False)])
def test_the_head_of_a_classifier(more: str, found: bool, tmp_path: Path) -> None:
    diagnosis = lora_doctor.check(str(script(tmp_path, more, ADD)), depth="meta")
    told = [item for item in diagnosis.findings if item.rule == "LD628"]
    assert bool(told) == found
    if told:
        # The checkpoint of a language model has no classifier.
        assert (told[0].severity, told[0].location.line) == ("error", 6)
        assert [edit.value for edit in told[0].fixes[0].edits] == [["score"]]


@pytest.mark.parametrize(
    ("adapt", "own"),
    [
        (ADD, True),
        ("model = get_peft_model(model, config)", False),
        ("model = get_peft_model(model, config)\nmodel.add_adapter('b', config)", False),
    ],
)
def test_which_call_is_the_models_own(adapt: str, own: bool, tmp_path: Path) -> None:
    call = adds_without_wrapper(read_setup(script(tmp_path, "", adapt)).roles)
    assert (call is not None) == own


def test_what_plain_peft_does() -> None:
    """`add_adapter` is this call behind a version check; `get_peft_model` trains the head."""
    import peft
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    def trains_the_head(way: str) -> bool:
        config_of_model = AutoConfig.from_pretrained(str(BASE))
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config_of_model)
        config = peft.LoraConfig(target_modules=["q_proj"], r=4, task_type="SEQ_CLS")
        arguments = (config, model) if way == "inject_adapter_in_model" else (model, config)
        adapted = getattr(peft, way)(*arguments)
        named = adapted.named_parameters()
        return any(value.requires_grad for name, value in named if "score" in name)

    assert trains_the_head("get_peft_model")
    assert not trains_the_head("inject_adapter_in_model")
