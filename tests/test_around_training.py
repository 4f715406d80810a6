"""What a script does with its adapters around training: read off it, line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from lora_doctor.recipe.program.added_tokens import added_tokens
from lora_doctor.recipe.program.after_training import (
    all_set_trainable,
    merged_and_dropped,
    merged_into_adapter_folder,
    saved_as_base,
    trained_in_turn,
)
from lora_doctor.recipe.program.callbacks import has_unread_callback
from lora_doctor.recipe.program.collated_columns import collated_columns
from lora_doctor.recipe.program.made_trainer import made_trainer
from lora_doctor.recipe.program.order import Slip
from lora_doctor.recipe.program.padding_id import sets_padding_id
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.streaming import streamed_without_steps
from lora_doctor.recipe.program.wrapping import compiled_before_adapters, loaded_onto_adapters

HEAD = """\
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

config = LoraConfig(r=8, target_modules=["q_proj"])
base = AutoModelForCausalLM.from_pretrained("org/model")
model = get_peft_model(base, config)
"""
TRAINING = 'trainer = Trainer(model=model, args=TrainingArguments("out"))\ntrainer.train()\n'
TRAINED = HEAD + TRAINING


def read(tmp_path: Path, text: str) -> Setup:
    path = tmp_path / "train.py"
    path.write_text(text, encoding="utf-8")
    return read_setup(path, None, ())


def lines(find: Callable[[Setup], Iterable[Slip]], setup: Setup) -> list[int]:
    return [slip.place.line for slip in find(setup) if slip.place.line is not None]


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ('model.merge_and_unload()\nmodel.save_pretrained("merged")\n', 10),
        ('model.merge_and_unload()\ntrainer.save_model("merged")\n', 10),
        ('trainer.model.merge_and_unload()\ntrainer.model.save_pretrained("merged")\n', 10),
        ('if True:\n    model.merge_and_unload()\nmodel.push_to_hub("me/merged")\n', 11),
        ('merged = model.merge_and_unload()\nmodel.save_pretrained("merged")\n', 10),
        ('model = model.merge_and_unload()\ntrainer.save_model("merged")\n', 10),
        ('model = model.merge_and_unload()\nmodel.save_pretrained("merged")\n', None),
        ('merged = model.merge_and_unload()\nmerged.save_pretrained("merged")\n', None),
        ('model.merge_and_unload().save_pretrained("merged")\n', None),
        ('model.save_pretrained("adapter")\nmodel.merge_and_unload()\n', None),
        ('model.merge_adapter()\nmodel.save_pretrained("adapter")\n', None),
        ('model.merge_and_unload()\nbase.save_pretrained("merged")\n', None),
    ],
)
def test_a_merged_model_that_is_not_kept(tmp_path: Path, code: str, line: int | None) -> None:
    """PEFT returns the merged model; the PEFT model then saves an adapter without tensors."""
    assert lines(merged_and_dropped, read(tmp_path, TRAINED + code)) == ([line] if line else [])


def test_a_name_for_the_merged_model_does_not_mend_what_the_trainer_saves(tmp_path: Path) -> None:
    code = 'model.merge_and_unload()\ntrainer.save_model("merged")\n'
    (slip,) = merged_and_dropped(read(tmp_path, TRAINED + code))
    assert not slip.rewrites


def test_keeping_the_merged_model_is_one_word_more(tmp_path: Path) -> None:
    code = 'model.merge_and_unload()\nmodel.save_pretrained("merged")\n'
    (slip,) = merged_and_dropped(read(tmp_path, TRAINED + code))
    assert [change.new for change in slip.rewrites] == ["model = "]


LOADED = """\
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained("base")
"""


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('PeftModel.from_pretrained(base, "out/a").merge_and_unload().save_pretrained("./out/a/")',
         True),
        ('m = AutoPeftModelForCausalLM.from_pretrained("a")\nm = m.merge_and_unload()\n'
         'm.save_pretrained("a")', True),
        ('PeftModel.from_pretrained(base, "a").merge_and_unload().save_pretrained("b")', False),
        ('PeftModel.from_pretrained(base, "a").save_pretrained("a")', False),
        ('PeftModel.from_pretrained(base, "a").merge_and_unload().save_pretrained("a")\n'
         'os.remove("a/adapter_config.json")', False),
    ],
)  # fmt: skip
def test_a_merged_model_beside_its_adapter(tmp_path: Path, code: str, found: bool) -> None:
    """Loading such a folder finds the adapter as well, unless the program takes it away."""
    slips = list(merged_into_adapter_folder(read(tmp_path, f"import os\n{LOADED}{code}\n")))
    assert bool(slips) is found


IN_TURN = """\
model.add_adapter("second", config)
trainer = Trainer(model=model, args=TrainingArguments("out"))
model.set_adapter("default")
trainer.train()
CHANGE
trainer.train()
"""


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ('model.set_adapter("second")', True),
        ('trainer.model.set_adapter("second")', True),
        ('model.set_adapter("default")', False),
        ('model.set_adapter("second")\ntrainer.optimizer = None', False),
        ('model.set_adapter("second")\ntrainer = Trainer(model=model)', False),
        ("print(trainer.state)", False),
    ],
)
def test_two_adapters_of_one_trainer(tmp_path: Path, change: str, found: bool) -> None:
    """The Trainer keeps the optimizer of its first ``train()``."""
    setup = read(tmp_path, HEAD + IN_TURN.replace("CHANGE", change))
    assert lines(trained_in_turn, setup) == ([13] if found else [])


@pytest.mark.parametrize(
    ("code", "switch"),
    [
        ("for p in model.parameters():\n    p.requires_grad = False\n", False),
        ("for name, p in model.named_parameters():\n    p.requires_grad_(True)\n", True),
        ("model.requires_grad_(False)\n", False),
        ("model.requires_grad_()\n", True),
        ("for p in base.parameters():\n    p.requires_grad = False\n", None),
        (
            "for p in model.parameters():\n    p.requires_grad = False\n"
            'for n, p in model.named_parameters():\n    if "lora" in n:\n'
            "        p.requires_grad = True\n",
            None,
        ),
        (
            "for n, p in model.named_parameters():\n"
            '    if "norm" in n:\n        p.requires_grad = True\n',
            None,
        ),
        ("trained = [p for p in model.parameters() if p.requires_grad]\n", None),
        ("model.requires_grad_(False)\nmodel.set_adapter('default')\n", None),
        ("model.enable_input_require_grads()\n", None),
    ],
)
def test_all_parameters_are_switched(tmp_path: Path, code: str, switch: bool | None) -> None:
    setup = read(tmp_path, HEAD + code + TRAINING)
    found = [trainable for trainable, _ in all_set_trainable(setup)]
    assert found == ([] if switch is None else [switch])


@pytest.mark.parametrize(
    "code",
    [
        TRAINING + "model.requires_grad_(False)\nmodel.eval()\n",
        'big = AutoModelForCausalLM.from_pretrained("org/big")\n'
        'teacher = PeftModel.from_pretrained(big, "adapter")\n'
        "for p in teacher.parameters():\n    p.requires_grad = False\n" + TRAINING,
        "optimizer = torch.optim.AdamW(model.parameters())\noptimizer.step()\n"
        "model.requires_grad_(False)\n",
    ],
)
def test_a_model_that_is_only_asked_may_be_frozen(tmp_path: Path, code: str) -> None:
    assert not list(all_set_trainable(read(tmp_path, HEAD + code)))


def test_a_loop_of_the_users_own_trains_too(tmp_path: Path) -> None:
    loop = "optimizer = torch.optim.AdamW(model.parameters())\noptimizer.step()\n"
    assert list(all_set_trainable(read(tmp_path, HEAD + "model.requires_grad_(False)\n" + loop)))


def test_freezing_before_the_adapters_is_usual(tmp_path: Path) -> None:
    loop = "for p in base.parameters():\n    p.requires_grad = False\nmodel = get"
    assert not list(all_set_trainable(read(tmp_path, HEAD.replace("model = get", loop))))


COLLATED = """\
tokenizer = AutoTokenizer.from_pretrained("org/model")


def collate(rows):
    BODY
    return batch


trainer = Trainer(model=model, args=TrainingArguments("out", OPTION), data_collator=collate)
"""


@pytest.mark.parametrize(
    ("body", "option", "names"),
    [
        ('batch = tokenizer([row["text"] for row in rows])', "", ["text"]),
        ('batch = tokenizer(rows[0]["text"])', "", ["text"]),
        ('batch = [f(r["q"], r["a"]) for _, r in enumerate(rows)]', "", ["q", "a"]),
        ('batch = tokenizer([row["text"] for row in rows])', "remove_unused_columns=False", None),
        ('batch = tokenizer([row["text"] for row in rows])', "**more", None),
        ('batch = [row["text"] if "text" in row else "" for row in rows]', "", None),
        ('batch = [row.get("text") for row in rows]', "", None),
        ('batch = tokenizer.pad(rows)\n    batch["text"] = batch["x"]', "", None),
        ('batch = [row["text"] for row in rows if "text" in row]', "", None),
        ('rows = list(map(encode, rows))\n    batch = [row["text"] for row in rows]', "", None),
        (
            'made = [encode(row) for row in rows]\n    batch = [row["text"] for row in made]',
            "",
            None,
        ),
    ],
)
def test_columns_that_a_collator_reads(
    tmp_path: Path, body: str, option: str, names: list[str] | None
) -> None:
    code = COLLATED.replace("BODY", body).replace(", OPTION", f", {option}" if option else "")
    found = list(collated_columns(read(tmp_path, HEAD + code)))
    assert [list(one.names) for one in found] == ([] if names is None else [names])


def test_a_collator_that_is_a_class(tmp_path: Path) -> None:
    code = (
        "class Collator:\n    def __call__(self, features):\n"
        '        return [one["audio"] for one in features]\n'
        'trainer = Trainer(model, TrainingArguments("out"), Collator())\n'
    )
    (found,) = collated_columns(read(tmp_path, HEAD + code))
    assert found.names == ("audio",) and found.rewrites


TRANSFORM = """\
from datasets import load_dataset

splits = load_dataset("food101")["train"].train_test_split(0.1)
rows, others = splits["train"], splits["test"]
def preprocess(batch):
    batch["pixel_values"] = [resize(image.convert("RGB")) for image in batch["image"]]
    return batch
SET
Trainer(model, TrainingArguments("out"OPTION), train_dataset=GIVEN)
"""


@pytest.mark.parametrize(
    ("how", "option", "given", "found"),
    [
        ("rows.set_transform(preprocess)", "", "rows", True),
        ('splits["train"].set_transform(preprocess)', "", 'splits["train"]', True),
        ("made = rows.with_transform(preprocess)", "", "made", True),
        ("rows.set_transform(preprocess)", ", remove_unused_columns=False", "rows", False),
        ('rows.set_transform(preprocess, columns=["image"])', "", "rows", False),
        ("rows.set_transform(lambda batch: batch)", "", "rows", False),
        ("others.set_transform(preprocess)", "", "rows", False),
        ("rows = rows.map(preprocess, batched=True)", "", "rows", False),
    ],
)
def test_what_a_transform_of_the_set_reads(
    tmp_path: Path, how: str, option: str, given: str, found: bool
) -> None:
    text = TRANSFORM.replace("SET", how).replace("OPTION", option).replace("GIVEN", given)
    read_by = [(one.names, one.collator) for one in collated_columns(read(tmp_path, HEAD + text))]
    assert read_by == [(("image",), "preprocess")] * found


TOKENS = 'tokenizer = AutoTokenizer.from_pretrained("org/model")\n'
RESIZED = "model.resize_token_embeddings(len(tokenizer))\n"


@pytest.mark.parametrize(
    ("code", "tokens", "padding", "resized"),
    [
        ('tokenizer.add_tokens(["<a>", "<b>"])\n' + RESIZED, ("<a>", "<b>"), False, True),
        ('tokenizer.add_special_tokens({"pad_token": "[PAD]"})\n', ("[PAD]",), True, False),
        (
            'NEW = ["<a>"]\ntokenizer.add_special_tokens({"additional_special_tokens": NEW})\n',
            ("<a>",),
            False,
            False,
        ),
        ("tokenizer.add_tokens(read())\n", None, False, False),
        ('tokenizer.add_tokens(["<a>"])\nmodel.set_input_embeddings(new)\n', None, False, False),
        ('tokenizer.add_tokens(["<a>"])\nmake(lambda m: m.resize_token_embeddings(9))\n', None,
         False, False),
    ],
)  # fmt: skip
def test_tokens_that_a_script_adds(
    tmp_path: Path, code: str, tokens: tuple[str, ...] | None, padding: bool, resized: bool
) -> None:
    found = list(added_tokens(read(tmp_path, HEAD + TOKENS + code)))
    if tokens is None:
        assert not found
        return
    (one,) = found
    assert (one.tokens, one.padding, one.resized is not None) == (tokens, padding, resized)
    assert one.of_the_model


@pytest.mark.parametrize(
    ("callbacks", "unread"),
    [
        ("[Own()]", False),
        ("[EarlyStoppingCallback(3)]", False),
        ("[Elsewhere()]", True),
        ("made()", True),
    ],
)
def test_callbacks_whose_code_is_not_known(tmp_path: Path, callbacks: str, unread: bool) -> None:
    code = (
        "from transformers import EarlyStoppingCallback, TrainerCallback\n"
        "from somewhere import Elsewhere, made\n"
        "class Own(TrainerCallback):\n    pass\n"
        f'trainer = Trainer(model, TrainingArguments("out"), callbacks={callbacks})\n'
    )
    assert has_unread_callback(read(tmp_path, HEAD + code)) is unread


@pytest.mark.parametrize(
    ("call", "given"),
    [
        ('Trainer(model, TrainingArguments("out"), train_dataset=[], callbacks=[x])', ()),
        ('Trainer(model, TrainingArguments("out"), compute_metrics=f)', ("compute_metrics",)),
        ('Trainer(model, TrainingArguments("out", seed=read()))', ()),
        ('Trainer(model, TrainingArguments("out", eval_strategy=read()))', None),
        ('Trainer(model, TrainingArguments("out"), **more)', None),
        ("Trainer(model, read())", None),
        ('Trainer(model, TrainingArguments("out"), model_init=f)', None),
    ],
)
def test_a_trainer_that_can_be_made_again(
    tmp_path: Path, call: str, given: tuple[str, ...] | None
) -> None:
    """Only where the text says all that decides."""
    found = made_trainer(read(tmp_path, HEAD + f"trainer = {call}\n"))
    assert (None if found is None else found.given) == given
    assert found is None or found.adapted


@pytest.mark.parametrize(
    ("find", "code", "found"),
    [
        (saved_as_base, 'base.save_pretrained("out")\n', True),
        (saved_as_base, 'base.save_pretrained("out")\nmodel.save_pretrained("out")\n', False),
        (saved_as_base, 'model.save_pretrained("out")\n', False),
        (saved_as_base, 'model.unload()\nbase.save_pretrained("out")\n', False),
        (loaded_onto_adapters, 'PeftModel.from_pretrained(model, "adapter")\n', True),
        (loaded_onto_adapters, 'PeftModel.from_pretrained(base, "adapter")\n', False),
        (loaded_onto_adapters, 'model.load_adapter("adapter", "second")\n', False),
        (loaded_onto_adapters,
         'PeftModel.from_pretrained(model.merge_and_unload(), "adapter")\n', False),
        (compiled_before_adapters, "get_peft_model(torch.compile(base), config)\n", True),
        (compiled_before_adapters, "base.compile()\nget_peft_model(base, config)\n", False),
        (compiled_before_adapters, "model = torch.compile(model)\n", False),
        (streamed_without_steps, 'Trainer(model, TrainingArguments("out"), None, ROWS)\n', True),
        (streamed_without_steps, "Trainer(model, train_dataset=ROWS.map(f).take(9))\n", True),
        (streamed_without_steps,
         'Trainer(model, TrainingArguments("out", max_steps=9), train_dataset=ROWS)\n', False),
        (streamed_without_steps, "Trainer(model, train_dataset=list(ROWS))\n", False),
        (streamed_without_steps,
         'Trainer(model, TrainingArguments("out", **more), train_dataset=ROWS)\n', False),
    ],
)  # fmt: skip
def test_what_adapters_and_trainers_are_put_on(
    tmp_path: Path, find: Callable[[Setup], Iterable[Slip]], code: str, found: bool
) -> None:
    rows = 'load_dataset("org/rows", streaming=True)'
    text = HEAD + "from datasets import load_dataset\n" + code.replace("ROWS", rows)
    assert bool(list(find(read(tmp_path, text)))) == found


@pytest.mark.parametrize(
    ("code", "sets"),
    [
        ("model.config.pad_token_id = 0\n", True),
        ('base = AutoModelForCausalLM.from_pretrained("org/model", pad_token_id=0)\n', True),
        ("print(model.config.pad_token_id == 0)\n", False),
        ("trainer = Trainer(model)\n", False),
    ],
)
def test_a_script_that_sets_the_padding_id(tmp_path: Path, code: str, sets: bool) -> None:
    """Whose classifier then takes batches: LD633 is silent."""
    assert sets_padding_id(read(tmp_path, HEAD + code)) == sets


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('from accelerate import Accelerator\nAccelerator(mixed_precision="fp16")\n', "fp16"),
        ('from accelerate import Accelerator\nAccelerator(mixed_precision="bf16")\n', "bf16"),
        ('from accelerate import Accelerator\nAccelerator(mixed_precision="no")\n', None),
        ("from accelerate import Accelerator\nAccelerator(mixed_precision=args.half)\n", None),
        ("scaler = torch.amp.GradScaler('cuda')\n", "fp16"),
        ("scaler = torch.cuda.amp.GradScaler(enabled=args.half)\n", None),
        # The Trainer makes an Accelerator of its own.
        ('from accelerate import Accelerator\nAccelerator(mixed_precision="fp16")\n' + TRAINING,
         None),
    ],
)  # fmt: skip
def test_what_a_loop_of_the_programs_own_computes_in(
    tmp_path: Path, code: str, found: str | None
) -> None:
    values = read(tmp_path, HEAD + code).recipe.values
    assert {key for key in ("fp16", "bf16") if values.get(key)} == ({found} if found else set())
