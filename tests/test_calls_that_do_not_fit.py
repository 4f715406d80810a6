"""Calls of a script, against what the installed classes do with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_doctor.recipe.program.absent_methods import absent_methods
from lora_doctor.recipe.program.asked_of_tokenizer import asked_of_tokenizer
from lora_doctor.recipe.program.misplaced import misplaced_arguments
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.static.folder.lacking_tokenizer import lacks_mask_token
from lora_doctor.static.installed.constructor_use import attributes_of, constructor_uses
from lora_doctor.static.model_files import StaticEvidence

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


_METHODS = """
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments
)

class Trains(Trainer):
    def fit(self): ...

model = AutoModelForCausalLM.from_pretrained("some/model")
own = AutoModelForCausalLM.from_pretrained("some/model", trust_remote_code=True)
few = AutoModelForCausalLM.from_pretrained(
    "some/model", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
)
config = LoraConfig(target_modules=["q_proj"])
trainer, mine = Trainer(model, TrainingArguments("out")), Trains(model, TrainingArguments("out"))
{code}
"""


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("model.print_trainable_parameters()", "peft"),
        ("model.add_adapter(config)\nmodel.merge_and_unload()", "peft"),
        ("get_peft_model(model, config)\nmodel.get_nb_trainable_parameters()", "peft"),
        ("get_peft_model(model, config).print_trainable_parameters()", ""),
        (
            "model = get_peft_model(model, config)\nmodel.merge_and_unload().save_pretrained('x')",
            "",
        ),
        ("own.print_trainable_parameters()", ""),
        ("if hasattr(model, 'x'):\n    model.print_trainable_parameters()", ""),
        ("try:\n    model.print_trainable_parameters()\nexcept AttributeError: pass", ""),
        ("model.num_parameters()\nmodel.save_pretrained('x')\nmodel.set_adapter('x')", ""),
        ("few.half()", "quantized"),
        ("few.float()", "quantized"),
        ("few.to(torch.bfloat16)", "quantized"),
        ("few.to(dtype=torch.bfloat16)", "quantized"),
        ("few.eval()\nfew.train()", ""),
        ("model.half()\nmodel.to(torch.float16)\nown.float()", ""),
        ("few = get_peft_model(few, config)\nfew.half()", ""),
        ("trainer.save_pretrained('x')", "absent"),
        ("trainer.save_model('x')\ntrainer.save_state()\ntrainer.model.save_pretrained('x')", ""),
        ("trainer.fit = print\ntrainer.fit()", ""),
        ("mine.fit()", ""),
        ("trainer.train().save_model('x')", "absent"),
        ("trained = mine.train()\ntrained.save_model('x')", ""),
        ("trained = trainer.train()\ntrained._asdict()\ntrained.metrics.update(a=1)", ""),
    ],
)
def test_methods_that_the_installed_class_lacks_are_told(
    tmp_path: Path, code: str, why: str
) -> None:
    """And those that it has, or that it may have, are not."""
    path = tmp_path / "train.py"
    path.write_text(_METHODS.format(code=code))
    assert [one.why for one in absent_methods(read_setup(path))] == [why] * bool(why)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("load_dataset('x', split='train', streaming=True).train_test_split(0.1)", True),
        ("load_dataset('x', split='train').shuffle().train_test_split(0.1)", False),
        ("load_dataset('x', split='train').map(print).batches()", True),
        ("load_dataset('x').batches()", False),
        ("load_dataset('x', split=['a', 'b']).batches()", False),
    ],
)
def test_a_streamed_set_has_fewer_methods(tmp_path: Path, code: str, found: bool) -> None:
    """Which ones is read in the installed package."""
    pytest.importorskip("datasets", minversion="2")
    path = tmp_path / "train.py"
    path.write_text(_METHODS.format(code=code))
    assert bool(list(absent_methods(read_setup(path)))) is found


_TOKENIZERS = """
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

tokenizer = AutoTokenizer.from_pretrained("some/model", use_fast=True)
other = AutoTokenizer.from_pretrained("another/model")
named = AutoTokenizer.from_pretrained("some/model", mask_token="<m>")
model = AutoModelForCausalLM.from_pretrained("some/model")
{code}
"""


@pytest.mark.parametrize(
    ("code", "asked"),
    [
        ("DataCollatorForLanguageModeling(tokenizer)", "mask_token"),
        ("DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=True)", "mask_token"),
        ("DataCollatorForLanguageModeling(tokenizer, mlm=False)", ""),
        ("DataCollatorForLanguageModeling(tokenizer, False)", ""),
        ("DataCollatorForLanguageModeling(other)", ""),
        ("DataCollatorForLanguageModeling(named)", ""),
        ("tokenizer.mask_token = '<m>'\nDataCollatorForLanguageModeling(tokenizer)", ""),
        ("tokenizer.add_special_tokens({})\nDataCollatorForLanguageModeling(tokenizer)", ""),
        ("tokenizer.apply_chat_template([])", "chat_template"),
        ("tokenizer.chat_template = 'x'\ntokenizer.apply_chat_template([])", ""),
        ("tokenizer.apply_chat_template([], chat_template='x')", ""),
        ("if tokenizer.chat_template:\n    tokenizer.apply_chat_template([])", ""),
        (
            "from trl import *\n_, tokenizer = setup_chat_format(model, other)\n"
            "tokenizer.apply_chat_template([])",
            "",
        ),
        ("other.apply_chat_template([])", ""),
    ],
)
def test_what_a_script_asks_of_its_models_tokenizer(tmp_path: Path, code: str, asked: str) -> None:
    """A script that gives it a token or a template is left alone, as is another tokenizer."""
    path = tmp_path / "train.py"
    path.write_text(_TOKENIZERS.format(code=code))
    assert [one.what for one in asked_of_tokenizer(read_setup(path))] == [asked] * bool(asked)


@pytest.mark.parametrize(
    ("settings", "model_type", "lacks"),
    [
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "llama", True),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<m>"}, "llama", False),
        ({"tokenizer_class": "BertTokenizerFast"}, "llama", False),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "bert", False),
        ({"tokenizer_class": "Own", "auto_map": {}}, "llama", False),
        ({}, "llama", False),
    ],
)
def test_a_mask_token_that_a_class_has_by_default(
    tmp_path: Path, settings: dict[str, str], model_type: str, lacks: bool
) -> None:
    """Old tokenizers of BERT say nothing of it in their files."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    static = StaticEvidence(str(tmp_path), tmp_path, {"model_type": model_type})
    assert lacks_mask_token(static) is lacks
