"""Arguments of a script's calls, against what the constructors of the installed classes do."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.recipe.program.misplaced import misplaced_arguments
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.static.installed.constructor_use import attributes_of, constructor_uses

_SCRIPT = """
import torch
from peft import LoraConfig, get_peft_model
from transformers import *
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, DataCollatorWithPadding,
    EarlyStoppingCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback,
    TrainingArguments,
)

class Own(TrainerCallback): ...

class Trains(Trainer):
    def __init__(self, model, args, data, **more): super().__init__(model, args, **more)

config = LoraConfig(target_modules=["q_proj"])
tokenizer = AutoTokenizer.from_pretrained("some/model")
model = AutoModelForCausalLM.from_pretrained("some/model")
args, adam = TrainingArguments("out"), torch.optim.AdamW(model.parameters())
collator = DataCollatorWithPadding(tokenizer)
{code}
"""


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("Trainer(model, args, [], data_collator=collator)", "twice"),
        ("Trainer(model, args, tokenizer, [])", "kind"),
        ("Trainer(model, tokenizer, args)", "kind"),
        ("Trainer(model, args, collator, [])", ""),
        ("Trains(model, args, [], data_collator=collator)", ""),
        ("Trainer(model, args, optimizers=adam)", "unpacked"),
        ("Trainer(model, args, optimizers=(adam,))", "unpacked"),
        ("Trainer(model, args, optimizers=(adam, None))", ""),
        ("Trainer(model, args, optimizers=[adam, None])", ""),
        ("Trainer(model, args, callbacks=Own())", "added"),
        ("Trainer(model, args, callbacks=EarlyStoppingCallback())", "added"),
        ("Trainer(model, args, callbacks=(Own(),))", "added"),
        ("Trainer(model, args, callbacks=[Own()])", ""),
        ("Trainer(model, args, callbacks=None)", ""),
        ("Seq2SeqTrainer(model, args)", "attribute"),
        ("Seq2SeqTrainer(model=model, args=args)", "attribute"),
        ("args.generation_config = None\nSeq2SeqTrainer(model, args)", ""),
        ("Seq2SeqTrainer(model, Seq2SeqTrainingArguments('out'))", ""),
        ("Trainer(model, Seq2SeqTrainingArguments('out'))", ""),
        ("DataCollatorForSeq2Seq(model, tokenizer)", "kind"),
        ("DataCollatorForSeq2Seq(tokenizer, model)", ""),
        ("DataCollatorWithPadding(AutoProcessor.from_pretrained('x'))", ""),
        ("DataCollatorWithPadding(tokenizer, True, 8, 8, 'pt', 1)", "many"),
        ("get_peft_model(config, model)", "kind"),
        ("get_peft_model(model, args)", "kind"),
        ("get_peft_model(model, config)", ""),
        ("if model.x:\n    Trainer(model, tokenizer, args)", ""),
    ],
)
def test_what_the_installed_class_cannot_use_is_told(tmp_path: Path, code: str, why: str) -> None:
    """And what it can use, in any order that it takes, is left alone."""
    path = tmp_path / "train.py"
    path.write_text(_SCRIPT.format(code=code))
    assert [one.why for one in misplaced_arguments(read_setup(path))] == [why] * bool(why)


@pytest.mark.parametrize("name", ["", "Seq2Seq"])
def test_a_trainer_reads_nothing_that_its_own_arguments_lack(name: str) -> None:
    """What is read off the source holds for the classes that belong together."""
    uses = constructor_uses(f"transformers.{name}Trainer", "args")
    read = {use.what for use in uses if use.kind == "attribute"}
    assert read and read <= (attributes_of(f"transformers.{name}TrainingArguments") or set())
