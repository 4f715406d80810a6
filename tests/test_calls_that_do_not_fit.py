"""Calls of a script, against what the installed classes do with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_doctor.recipe.program.absent_methods import absent_methods
from lora_doctor.recipe.program.absent_names import absent_names
from lora_doctor.recipe.program.asked_of_tokenizer import asked_of_tokenizer
from lora_doctor.recipe.program.misplaced import misplaced_arguments
from lora_doctor.recipe.program.names import unknown_arguments
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.program.without_effect import (
    contexts_not_entered,
    unused_adapter_configs,
)
from lora_doctor.static.folder.lacking_tokenizer import lacks_mask_token
from lora_doctor.static.installed.constructor_use import attributes_of, constructor_uses
from lora_doctor.static.model_files import StaticEvidence

_SCRIPT = """
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import *
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, DataCollatorWithPadding,
    EarlyStoppingCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback,
    TrainingArguments, get_linear_schedule_with_warmup,
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
        ("get_peft_model(model)", "missing"),
        ("get_linear_schedule_with_warmup(adam, 10)", "missing"),
        ("get_linear_schedule_with_warmup(adam, 10, num_training_steps=100)", ""),
        ("AutoPeftModelForCausalLM.from_pretrained(path='x')", "missing"),
        ("Trainer(model, (args,))", "kind"),
        ("Trainer(model, args, train_dataset=model.add_adapter(config))", "kind"),
        ("Trainer(model.load_state_dict({}), args)", "kind"),
        ("model.generate(['a', 'b'])", "kind"),
        ("torch.optim.AdamW(model.parameters(), lr='1e-4')", "kind"),
        ("torch.optim.AdamW(model.parameters(), lr=float('1e-4'), betas=(0.9, 0.99))", ""),
        ("torch.utils.data.DataLoader([], batch_sampler=2)", "kind"),
        ("torch.utils.data.DataLoader([], batch_size=2, num_workers=0, shuffle=True)", ""),
        ("model.generate(**tokenizer('a'))\nmodel.generate(tokenizer('a').input_ids)", ""),
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
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments
)

class Trains(Trainer):
    def fit(self): ...

model = AutoModelForCausalLM.from_pretrained("some/model")
own = AutoModelForCausalLM.from_pretrained("some/model", trust_remote_code=True)
few = AutoModelForCausalLM.from_pretrained(
    "some/model", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
)
config = LoraConfig(target_modules=["q_proj"])
tokenizer = AutoTokenizer.from_pretrained("some/model")
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
        ("model = model.add_adapter(config)\nmodel.train()", "nothing"),
        ("model = model.enable_input_require_grads()\nprint(model.config)", "nothing"),
        ("done = model.add_adapter(config)\nprint(done)\nmodel.train()", ""),
        ("model = model.load_state_dict({})\nmodel.train()", "absent"),
        ("loaded = model.load_state_dict({})\nprint(loaded.missing_keys)", ""),
        (
            "model = set_peft_model_state_dict(get_peft_model(model, config), {})\nmodel.eval()",
            "absent",
        ),
        ("model = get_peft_model(model, config)\nmodel.load_adapter('x', 'y').eval()", "absent"),
        ("get_peft_model(model, config).save_pretrained_merged('x')", "nowhere"),
        ("model.save_pretrained_merged = print\nmodel.save_pretrained_merged('x')", ""),
        ("tokenizer.resize_token_embeddings(9)", "nowhere"),
        ("tokenizer.add_tokens(['a'])\ntokenizer.save_pretrained('x')\ntokenizer.encode('x')", ""),
        ("number = tokenizer.add_tokens(['a'])\nnumber.save_pretrained('x')", "absent"),
        ("print(get_peft_model(model, config).peft_config())", "property"),
        ("print(get_peft_model(model, config).peft_config['default'])", ""),
        ("print(trainer.no_such_name)", "attribute"),
        ("print(trainer.args, trainer.model, trainer.state, trainer.accelerator)", ""),
        ("print(model.lm_head, tokenizer.pad_token, tokenizer.vocab_size, model.config)", ""),
        ("model, other = AutoModelForCausalLM.from_pretrained('x')", "unpacked"),
        ("model, info = AutoModelForCausalLM.from_pretrained('x', output_loading_info=True)", ""),
        ("optimizer = torch.optim.AdamW(model.parameters())\noptimizer.backward()", "absent"),
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


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("get_peft_model(model, r=16)", ["r"]),
        (
            "get_linear_schedule_with_warmup(adam, warmup_steps=1, t_total=9)",
            ["warmup_steps", "t_total"],
        ),
        (
            "get_constant_schedule_with_warmup(adam, 1, num_training_steps=9)",
            ["num_training_steps"],
        ),
        ("AutoModelForCausalLM.from_pretrained('x', peft_config=config)", ["peft_config"]),
        ("AutoModelForCausalLM.from_pretrained('x', num_labels=2, use_cache=False)", []),
        ("AutoModelForCausalLM.from_pretrained('x', trust_remote_code=True, own=1)", []),
        ("torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)", []),
        ("torch.optim.AdamW(model.parameters(), learning_rate=1e-4)", ["learning_rate"]),
        ("torch.nn.Linear(2, 2, biased=True)", []),
    ],
)
def test_functions_and_loading_are_asked_for_their_arguments(
    tmp_path: Path, code: str, names: list[str]
) -> None:
    """As constructors are; what a config may have, and code of one's own, is left alone."""
    path = tmp_path / "train.py"
    more = "from transformers import get_constant_schedule_with_warmup\n"
    path.write_text(_SCRIPT.format(code=more + code))
    assert [one.name for one in unknown_arguments(read_setup(path))] == names


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("rows.remove_columns(['id'])", ["id"]),
        ("rows.map(len, remove_columns=['text', 'id'])", ["id"]),
        ("rows.rename_column('words', 'text')", ["words"]),
        ("rows.rename_column('text', 'words').remove_columns('words')", []),
        ("rows.map(len).remove_columns(['new'])", []),
        ("rows['train']", ["train"]),
        ("rows['text']", []),
        ("rows.map(len)['train']", ["train"]),
        ("splits['validation']", ["validation"]),
        ("splits['train']", []),
        ("splits['test'] = rows\nsplits['test']", []),
        ("if 'test' in splits:\n    splits['test']", []),
        ("rows.train_test_split(0.1)['validation']", ["validation"]),
        ("rows.train_test_split(0.1)['test']", []),
        ("load_dataset('json', data_files='rows.jsonl', split='test')", ["test"]),
        ("load_dataset('json', data_files='rows.jsonl', split='train[:2]')", []),
        ("load_dataset('json', data_files={'a': 'rows.jsonl'}, split='a')", []),
        ("load_dataset('some/set', split='validation')", []),
    ],
)
def test_names_that_the_data_lacks_are_told(tmp_path: Path, code: str, names: list[str]) -> None:
    """By the file beside the script; what a step may have added is left alone."""
    pytest.importorskip("datasets", minversion="2")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    path = tmp_path / "train.py"
    path.write_text(
        "from datasets import load_dataset\n"
        "splits = load_dataset('json', data_files='rows.jsonl')\n"
        f"rows = load_dataset('json', data_files='rows.jsonl', split='train')\n{code}\n"
    )
    assert [one.name for one in absent_names(read_setup(path))] == names


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("model.disable_adapter()", True),
        ("with model.disable_adapter():\n    pass", False),
        ("context = model.disable_adapter()", False),
        ("model.eval()", False),
    ],
)
def test_a_context_has_to_be_entered(tmp_path: Path, code: str, found: bool) -> None:
    """One that is kept may be entered later."""
    path = tmp_path / "train.py"
    path.write_text(_SCRIPT.format(code=f"model = get_peft_model(model, config)\n{code}"))
    assert bool(list(contexts_not_entered(read_setup(path)))) is found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("Trainer(model, args).train()", True),
        ("print(config)\nTrainer(model, args).train()", False),
        ("model = get_peft_model(model, config)\nTrainer(model, args).train()", False),
        ("model = put_on(model, config)\nTrainer(model, args).train()", False),
        ("print(model)", False),
    ],
)
def test_an_adapter_that_no_model_gets_is_told(tmp_path: Path, code: str, found: bool) -> None:
    """Where its config is read anywhere, somebody may put it on."""
    path = tmp_path / "train.py"
    path.write_text(_SCRIPT.format(code=code))
    assert bool(list(unused_adapter_configs(read_setup(path)))) is found
