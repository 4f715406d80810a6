"""What is read of the rows that a script's trainer gets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lora_doctor.recipe.program import overrides, training_rows
from lora_doctor.recipe.program.dataset_columns import columns_of
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.training_rows import evaluated_on_trained, labels_with_padding
from lora_doctor.recipe.program.written_rows import MOST, written_rows
from lora_doctor.static.installed import trainer_calls
from lora_doctor.static.script.padded_labels import padded_labels

_SCRIPT = """
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers import DataCollatorForLanguageModeling

tokenizer = AutoTokenizer.from_pretrained("some/model")
model = get_peft_model(AutoModelForCausalLM.from_pretrained("some/model"), LoraConfig())
{rows}
Trainer(model, TrainingArguments("out", {arguments}), {given})
"""


def _read(tmp_path: Path, rows: str, given: str, arguments: str = "") -> Setup:
    path = tmp_path / "train.py"
    path.write_text(_SCRIPT.format(rows=rows, given=given, arguments=arguments))
    return read_setup(path)


@pytest.mark.parametrize(
    ("rows", "given", "found"),
    [
        ("data = load_dataset('a')", "train_dataset=data['train'], eval_dataset=data['train']", 1),
        ("data = load_dataset('a')", "train_dataset=data['train'], eval_dataset=data['test']", 0),
        ("data = load_dataset('a', split='train')", "train_dataset=data, eval_dataset=data", 1),
        (
            "data = load_dataset('a', split='train').map(len)",
            "train_dataset=data.shuffle(), eval_dataset=data.select(range(9)).map(str)",
            1,
        ),
        (
            "data = load_dataset('a', split='train')",
            "train_dataset=data.select(range(90)), eval_dataset=data.select(range(90, 99))",
            0,
        ),
        (
            "data = load_dataset('a', split='train')",
            "train_dataset=data.filter(bool), eval_dataset=data.filter(len)",
            0,
        ),
        (
            "a = load_dataset('a', split='train'); b = load_dataset('a', split='train[:5%]')",
            "train_dataset=a.map(len), eval_dataset=b.shuffle().select(range(9))",
            1,
        ),
        (
            "a = load_dataset('a', 'x', split='train'); b = load_dataset('a', split='train')",
            "train_dataset=a.map(len), eval_dataset=b.shuffle()",
            0,
        ),
    ],
)
def test_an_evaluation_set_that_is_trained_on(
    tmp_path: Path, rows: str, given: str, found: int
) -> None:
    """Parts that were selected apart are healthy, and so is a set that nobody evaluates on."""
    setup = _read(tmp_path, rows, given, "eval_strategy='epoch'")
    assert len(list(evaluated_on_trained(setup))) == found
    unused = _read(tmp_path, rows, given)
    assert not list(evaluated_on_trained(unused))


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("b = tok(r, padding='max_length')\n b['labels'] = b['input_ids'].copy()", True),
        ("b = tok(r, padding='max_length')\n b['labels'] = b.input_ids.clone()", True),
        ("b = tok(r, padding='max_length')\n b['labels'] = [i[:] for i in b['input_ids']]", False),
        (
            "b = tok(r, padding='max_length')\n b['labels'] = [i.copy() for i in b['input_ids']]",
            True,
        ),
        ("b = tok(r)\n b['labels'] = tok(r['y'], padding='max_length')['input_ids']", True),
        ("b = tok(r, truncation=True)\n b['labels'] = b['input_ids'].copy()", False),
        (
            "b = tok(r, padding='max_length')\n b['labels'] = b['input_ids'].copy()\n"
            " b['labels'] = [-100 if i == 0 else i for i in b['labels']]",
            False,
        ),
        *(
            (f"e = self.tok(r, padding='max_length', return_tensors='pt')\n {rest}", found)
            for rest, found in [
                ("i = e['input_ids'].squeeze(0)\n b = {'input_ids': i, 'labels': i.clone()}", True),
                (
                    "b = {'attention_mask': e['attention_mask'][0], 'labels': e.input_ids[0]}",
                    True,
                ),
                ("b = dict(attention_mask=e.attention_mask, labels=e.input_ids.squeeze())", True),
                ("m = e['attention_mask']\n b = dict(labels=fill(e['input_ids'], m))", False),
                ("i = e.input_ids\n i = drop(i)\n b = dict(labels=i.clone())", False),
                ("i = e.input_ids.clone()\n i[i == self.pad] = self.no\n b = {'labels': i}", False),
                ("b = {'input_ids': e['input_ids'], 'labels': self.ids(r)}", False),
                ("b = {'input_ids': e['input_ids']}", False),
            ]
        ),
    ],
)
def test_labels_that_are_copied_with_their_padding(body: str, found: bool) -> None:
    """Rows without padding, and labels that are masked somewhere, are healthy."""
    function = ast.parse(f"def rows(r):\n {body}\n return b").body[0]
    assert (padded_labels(function) is not None) is found


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("train_dataset=data.map(padded).shuffle()", 1),
        (
            "train_dataset=data.map(padded), "
            "data_collator=DataCollatorForLanguageModeling(tokenizer)",
            0,
        ),
        ("train_dataset=data.map(padded).map(other)", 0),
        ("train_dataset=Rows()", 1),
    ],
)
def test_a_collator_may_make_labels_of_its_own(tmp_path: Path, given: str, found: int) -> None:
    """That of language models masks the padding; so may a later function."""
    rows = """
def padded(row):
    batch = tokenizer(row["text"], padding="max_length")
    batch["labels"] = batch["input_ids"].copy()
    return batch

def other(row):
    return mask(row)

class Rows(torch.utils.data.Dataset):
    def __getitem__(self, number):
        batch = tokenizer("text", padding="max_length")
        return {"input_ids": batch["input_ids"], "labels": batch["input_ids"].copy()}

data = load_dataset("a", split="train")
"""
    setup = _read(tmp_path, rows, given)
    assert len(list(labels_with_padding(setup))) == found


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ("data = Dataset.from_dict({'a': [1], 'b': [2]})", {"a", "b"}),
        ("data = Dataset.from_list([{'a': n} for n in range(3)]).rename_column('a', 'c')", {"c"}),
        ("data = Dataset.from_dict({'a': [1], 'b': [2]}).remove_columns(['b']).shuffle()", {"a"}),
        ("data = Dataset.from_dict({'a': [1], 'b': [2]}).select_columns('b')", {"b"}),
        ("data = Dataset.from_dict({'a': [1]}).map(len)", None),
        ("data = load_dataset('a', split='train')", None),
    ],
)
def test_columns_are_followed_as_far_as_the_text_says(
    tmp_path: Path, rows: str, columns: set[str] | None
) -> None:
    """What a function of the user's makes of a row is not known."""
    setup = _read(tmp_path, rows, "train_dataset=data")
    (trainer,) = [one for one in setup.program.calls if one.method == "Trainer"]
    found = columns_of(trainer.value("train_dataset"))
    assert (None if found is None else set(found)) == columns


@pytest.mark.parametrize(
    ("rows", "first"),
    [
        ("data = Dataset.from_dict({'a': [1, 2], 'b': ['x', 'y']})", {"a": 1, "b": "x"}),
        (
            "data = Dataset.from_list([{'a': n, 'b': f'{n}!'} for n in range(99)]).shuffle()",
            {"a": 0, "b": "0!"},
        ),
        (
            "data = load_dataset('json', data_files='rows.jsonl', split='train')"
            ".rename_column('a', 'c').remove_columns('b')",
            {"c": [{"role": "user"}]},
        ),
        ("data = load_dataset('json', data_files='gone.jsonl', split='train')", None),
        ("data = Dataset.from_dict({'a': [1]}).map(len)", None),
        ("data = Dataset.from_dict({'a': [open('x').read()]})", None),
    ],
)
def test_rows_are_followed_as_far_as_the_text_says(
    tmp_path: Path, rows: str, first: dict[str, object] | None
) -> None:
    """They are what a trainer is tried with; a value that is not known makes them unknown."""
    (tmp_path / "rows.jsonl").write_text('{"a": [{"role": "user"}], "b": 1}\n' * 20)
    setup = _read(tmp_path, rows, "train_dataset=data")
    (trainer,) = [one for one in setup.program.calls if one.method == "Trainer"]
    found = written_rows(trainer.value("train_dataset"), tmp_path)
    assert (found or [None])[0] == first
    assert found is None or len(found) <= MOST


@pytest.mark.parametrize(
    ("part", "whole", "within"),
    [
        ("train", "train", True),
        ("train[:5%]", "train", True),
        ("train[10%:20%]", "train[:90%]", True),
        ("train[900:1000]", "train[:1000]", True),
        ("train[90%:]", "train[:90%]", False),
        ("train[:100]", "train[:90%]", False),
        ("train[-100:]", "train[:-100]", False),
        ("train", "train[:90%]", False),
        ("test[:5%]", "train", False),
    ],
)
def test_a_slice_of_a_split_is_a_part_of_it(part: str, whole: str, within: bool) -> None:
    """Where both count in rows, or both in percent."""
    assert training_rows._is_within(part, whole) is within


_TRAINER = """
class Trainer:
    def train(self):
        loader = self.get_loader()
        self.step(self.model, loader, 4)
        if self.args.resume:
            self.rare(1, 2)

    def get_loader(self):
        return self.make_loader(sampler=self._get_train_sampler)

    def make_loader(self, sampler=None):
        return sampler(self.data)

    def _get_train_sampler(self, rows=None): ...

    def step(self, model, inputs, n):
        self.compute_loss(model, inputs, num_items_in_batch=n)
        if self.control.should_log:
            self.log(model, n)

    def rare(self, one, other): ...
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None): ...
    def log(self, logs, start_time=None): ...
"""


@pytest.mark.parametrize(
    ("own", "arguments", "narrow"),
    [
        ("compute_loss(self, model, inputs, return_outputs=False)", "", "num_items_in_batch"),
        ("compute_loss(self, model, inputs, return_outputs=False, **kwargs)", "", None),
        (
            "compute_loss(self, model, inputs, return_outputs=False, *, num_items_in_batch)",
            "",
            None,
        ),
        ("compute_loss(self, model, inputs, other, num_items_in_batch)", "", "other"),
        ("step(self, m, batch, n): ...\n    def compute_loss(self, m, batch)", "", None),
        (
            "step(self, m, batch): super().step(m, batch)\n    def compute_loss(self, m, batch)",
            "",
            "n num_items_in_batch",
        ),
        ("log(self, logs)", "logging_steps=1", "start_time"),
        ("log(self, logs)", "logging_steps=9, max_steps=5", None),
        ("log(self, logs)", "logging_strategy='no', logging_steps=1", None),
        ("log(self, logs, *args)", "logging_steps=1", None),
        ("_get_train_sampler(self)", "", "rows"),
        ("rare(self, one)", "", None),
        ("wrapped(self): ...\n    @wrapped\n    def compute_loss(self, m, batch)", "", None),
    ],
)
def test_a_method_that_takes_less_than_the_trainer_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, arguments: str, narrow: str | None
) -> None:
    """In the class that is made or in one that it inherits; of what a step of its own calls, only
    the inherited step knows how."""
    monkeypatch.setattr(trainer_calls, "installed_tree", lambda path: ast.parse(_TRAINER))
    trainer_calls._methods.cache_clear()
    rows = f"class Own(Trainer):\n    def {own}: ...\nclass Made(Own): ...\n"
    rows += f"Made(model, TrainingArguments('out', {arguments}), train_dataset=[]).train()"
    found = list(overrides.narrow_overrides(_read(tmp_path, rows, "train_dataset=[]")))
    trainer_calls._methods.cache_clear()
    assert [name for one in found for name in (*one.not_taken, *one.not_given)] == (
        narrow.split() if narrow else []
    )
