"""The rows that a script says, through the installed collator and trainer on a tiny model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.engine.program import of_program
from lora_doctor.errors import EvidenceError
from lora_doctor.evidence import first_batch
from lora_doctor.recipe.program.first_batch import own_rows
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.static.model_source import parse_model

FOLDER = Path(__file__).parent / "folders" / "chat_model"
HEAD = f"""\
import json

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer,
    DataCollatorForLanguageModeling, DataCollatorWithPadding, Trainer, TrainingArguments,
    default_data_collator,
)

tokenizer = AutoTokenizer.from_pretrained({str(FOLDER)!r})
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForSequenceClassification.from_pretrained({str(FOLDER)!r}, LABELS)
model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS"))
args = TrainingArguments("out", per_device_train_batch_size=4)
"""
CAUSAL = (
    HEAD.replace("SequenceClassification", "CausalLM")
    .replace(", LABELS", "")
    .replace("SEQ_CLS", "CAUSAL_LM")
)
CLASSES = """
rows = [{"input_ids": [5, 6, 7], "label": 0}, {"input_ids": [5, 6], "label": 2}] * 8
Trainer(model, args, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)).train()
"""
OWN_CLASS = """
class Texts(torch.utils.data.Dataset):
    def __init__(self, path, tokenizer):
        super().__init__()
        with open(path) as lines:
            self.rows = [json.loads(line) for line in lines]
        self.tokenizer = tokenizer

    LENGTH

    def __getitem__(self, number):
        ids = self.tokenizer(self.rows[number]["text"], OPTIONS)["input_ids"]
        return {"input_ids": ids, "labels": [-100] + ids[1:]}


Trainer(
    model, args, train_dataset=Texts("texts.jsonl", tokenizer), data_collator=default_data_collator
).train()
"""
LENGTH = "def __len__(self):\n        return len(self.rows)"
PADDED = 'padding="max_length", truncation=True, max_length=8'
COLLATED = """
def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(LABELS)}


rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [5, 6]}] * 8
Trainer(model, args, train_dataset=rows, data_collator=collate).train()
"""
MAPPED = """
from datasets import load_dataset

def tokenized(rows):
    return tokenizer(rows["text"])

rows = load_dataset("json", data_files="texts.jsonl")["train"].train_test_split(0.25, seed=1)
rows = rows.map(tokenized, batched=True, REMOVED)
Trainer(model, args, train_dataset=rows["train"], data_collator=COLLATOR).train()
"""
LANGUAGE = "DataCollatorForLanguageModeling(tokenizer, mlm=False)"


def look(tmp_path: Path, script: str) -> Any:
    """What the child process would answer; ``None`` where the script does not say all."""
    texts = [{"text": " ".join(["hello"] * (number % 3 + 1))} for number in range(16)]
    lines = "\n".join(map(json.dumps, texts))
    (tmp_path / "texts.jsonl").write_text(lines, encoding="utf-8")
    path = tmp_path / "train.py"
    path.write_text(script, encoding="utf-8")
    source, recipe = of_program(parse_model(str(path)), Recipe({}, {}), (), trust_remote_code=False)
    rows = own_rows(read_setup(path))
    if rows is None:
        return None
    plan = json.loads(json.dumps(rows.described))
    return first_batch.gather(source.for_child(), recipe.to_json(), plan)


@pytest.mark.parametrize(
    ("script", "stage", "said"),
    [
        (HEAD.replace("LABELS", "num_labels=3") + CLASSES, "", ""),
        (HEAD.replace("LABELS", "") + CLASSES, "loss", "Target 2 is out of bounds"),
        (
            CAUSAL + OWN_CLASS.replace("LENGTH", LENGTH).replace("OPTIONS", PADDED), "", "",
        ),
        (
            CAUSAL + OWN_CLASS.replace("LENGTH", LENGTH).replace("OPTIONS", ""),
            "batch", "expected sequence of length",
        ),
        (CAUSAL + OWN_CLASS.replace("LENGTH", "").replace("OPTIONS", PADDED), "*", "len"),
        (CAUSAL + COLLATED.replace("LABELS", "ids"), "", ""),
        (
            CAUSAL + COLLATED.replace("LABELS", '[row["input_ids"] for row in rows]'),
            "batch", "expected sequence of length",
        ),
    ],
)  # fmt: skip
def test_rows_of_the_script(tmp_path: Path, script: str, stage: str, said: str) -> None:
    """What plain transformers raises for such a script, and nothing for one that trains."""
    found = look(tmp_path, script)
    assert found["stage"] == stage or (stage == "*" and found["stage"])
    assert said in found["message"]
    assert bool(found["batches"]) or found["stage"] != ""


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs datasets")
@pytest.mark.parametrize(
    ("removed", "collator", "stage"),
    [
        ('remove_columns=["text"]', LANGUAGE, ""),
        ('remove_columns=["text"]', "DataCollatorWithPadding(tokenizer)", "loss"),
        ('remove_columns=["words"]', LANGUAGE, "rows"),
    ],
)
def test_sets_of_datasets(tmp_path: Path, removed: str, collator: str, stage: str) -> None:
    """The set is made by the installed `datasets`, with the script's own function worked out."""
    script = CAUSAL + MAPPED.replace("REMOVED", removed).replace("COLLATOR", collator)
    found = look(tmp_path, script)
    assert found["stage"] == stage and found["rows"] == (0 if stage == "rows" else 12)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rows = [", "rows = load()\nrows = ["),
        ("] * 8\n", "] * 8\nrows = filtered(rows)\n"),
        ("] * 8\n", "] * 8\nmodel.config.num_labels = 3\n"),
        ("] * 8\n", "] * 8\nmodel.score = torch.nn.Linear(64, 3)\n"),
        ("] * 8\n", "] * 8\nrows[0] = fixed(rows)\nrows.append(more())\n"),
        ("DataCollatorWithPadding(tokenizer)", "Collator()"),
        ("Trainer(model, args", "MyTrainer(model, args"),
    ],
)
def test_what_the_script_does_not_say(tmp_path: Path, old: str, new: str) -> None:
    """A limit of ours is no failure of theirs: nothing is said."""
    script = HEAD.replace("LABELS", "") + CLASSES
    changed = script.replace(old, new)
    assert changed != script
    try:
        found = look(tmp_path, changed)
    except EvidenceError:
        return
    assert found is None or (old == "rows = [" and found["stage"] == "loss")


LOOP = """
rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 8
for batch in torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=COLLATOR):
    model(**batch).loss.backward()
"""


@pytest.mark.parametrize(("collator", "stage"), [("default_data_collator", ""), ("None", "batch")])
def test_batches_of_a_loop(tmp_path: Path, collator: str, stage: str) -> None:
    """Of lists torch's own collator makes a list for each place in them, and no tensor."""
    found = look(tmp_path, CAUSAL + LOOP.replace("COLLATOR", collator))
    assert found["stage"] == stage
    assert ("list of 3 parts" in found["message"]) is bool(stage)


@pytest.mark.parametrize(
    ("label", "told"), [(1, True), ("n % 2", False)]
)  # fmt: skip
def test_rows_of_one_class(tmp_path: Path, label: object, told: bool) -> None:
    """A classifier that sees one class answers with it, whatever it is given (LD948)."""
    rows = f'rows = [{{"input_ids": [5, 6, 7], "label": {label}}} for n in range(16)]\n'
    call = CLASSES.strip().splitlines()[-1]
    found = look(tmp_path, HEAD.replace("LABELS", "num_labels=3") + rows + call)
    assert found["stage"] == "" and (found["one_label"] is not None) is told
