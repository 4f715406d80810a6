"""The data of a dry run: sets that cannot be had, sets on a hub, streams, lengths that are guesses.

Needs ``datasets``, see `nox -s dry_run`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_doctor.dry_run.acts import data as data_act
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.session import Session
from tests.test_dry_run import dry_run, place

__all__ = ["place"]  # the fixture

datasets = pytest.importorskip("datasets")

_IMPORTS = """
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator
)
"""
#: From rows with a column "number" to a run.
_TRAIN = """
def tokens(row):
    ids = [1, *range(3 + row["number"] % 900, 15 + row["number"] % 900), 2]
    return {"input_ids": ids, "labels": ids}


model = get_peft_model(
    AutoModelForCausalLM.from_pretrained("model"),
    LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
Trainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=4, max_steps=LIMIT, num_train_epochs=1),
    train_dataset=rows.map(tokens),
    data_collator=default_data_collator,
).train()
"""
_CARD = """---
dataset_info:
  features:
  - name: number
    dtype: int64
  - name: text
    dtype: string
  splits:
  - name: train
    num_bytes: 100000
    num_examples: 5000
---
A set of which only the card is here.
"""


def run(
    folder: Path, script: str, *words: str, code: int = 0, steps: int | None = None
) -> dict[str, Any]:
    """``steps``: of the run, for sets without a length."""
    (folder / "script.py").write_text(
        f"{_IMPORTS}\nLIMIT = {steps or -1}\n{script}{_TRAIN}", encoding="utf-8"
    )
    return dry_run(folder, sys.executable, "script.py", options=words, code=code)


def notes(report: dict[str, Any]) -> str:
    return " ".join(note["text"] for note in report["notes"])


@pytest.fixture
def with_card(place: Path) -> Path:
    (place / "numbers").mkdir()
    (place / "numbers" / "README.md").write_text(_CARD, encoding="utf-8")
    return place


def test_without_its_data_the_question_is_open_and_the_line_is_told(with_card: Path) -> None:
    report = run(with_card, 'rows = load_dataset("numbers", split="train")\n', code=2)
    assert "script.py:9" in report["undetermined"]
    assert "--synthetic-data" in report["undetermined"]
    assert not report["findings"]


def test_rows_are_made_up_from_what_the_card_declares(with_card: Path) -> None:
    """The length is the declared one, and nothing is said of labels that nobody has seen."""
    script = (
        'rows = load_dataset("numbers", split="train")\n'
        'assert isinstance(rows[0]["text"], str) and len(rows) == 5000\n'
    )
    report = run(with_card, script, "--synthetic-data")
    assert report["verdict"] == "healthy"
    assert report["dry_run"]["planned_steps"] == 1250
    assert "data set numbers (script.py:9) cannot be had" in notes(report)
    assert "labels prove nothing" in notes(report)
    assert report["supervision"] is None


def test_without_declared_features_no_rows_are_made_up(place: Path) -> None:
    script = 'rows = load_dataset("json", data_files="gone.jsonl", split="train")\n'
    report = run(place, script, "--synthetic-data", code=2)
    assert "declares no features" in report["undetermined"]


def test_a_call_that_is_wrong_is_the_users_own_error(place: Path) -> None:
    """A split that is not there is no lack of data."""
    (place / "rows.jsonl").write_text('{"number": 1}\n')
    script = 'rows = load_dataset("json", data_files="rows.jsonl", split="trian")\n'
    report = run(place, script, "--synthetic-data", code=1)
    assert report["findings"][0]["rule"] == "LD002"
    assert report["findings"][0]["location"]["line"] == 9


def test_every_kind_of_declared_column_has_rows() -> None:
    from lora_doctor.dry_run.acts.synthetic import NotMadeError, made_rows

    turn = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features(
        {
            "messages": [turn],
            "prompt": [turn],
            "input_ids": datasets.Sequence(datasets.Value("int32")),
            "label": datasets.ClassLabel(names=["no", "yes", "maybe"]),
            "score": datasets.Value("float32"),
            "when": datasets.Value("timestamp[s]"),
            "grid": datasets.Array2D((2, 3), "float32"),
            "translation": datasets.Translation(["de", "en"]),
        }
    )
    made = datasets.Dataset.from_list(made_rows(features, 7), features=features)
    assert [one["role"] for one in made[0]["messages"]] == ["user", "assistant"]
    assert [one["role"] for one in made[0]["prompt"]] == ["user"]
    assert set(made["label"]) == {0, 1, 2}
    assert made.features == features
    with pytest.raises(NotMadeError, match="column 'odd'"):
        made_rows({"odd": object()}, 1)


def test_a_set_that_was_prepared_before_is_read_where_it_lies(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network; nothing is written beside it, the small set's own mapping included."""
    cache = place / "cache"
    (place / "rows.jsonl").write_text("".join(f'{{"number": {n}}}\n' for n in range(40)))
    made = datasets.load_dataset(
        "json", data_files=str(place / "rows.jsonl"), split="train", cache_dir=str(cache)
    )
    prepared = Path(made.cache_files[0]["filename"]).parent
    known = cache / "somebody___numbers" / "default" / "0.0.0"
    known.mkdir(parents=True)
    shutil.copytree(prepared, known / "0123456789abcdef")
    for file in (known / "0123456789abcdef").glob("json-train*"):
        file.rename(file.with_name(file.name.replace("json-", "numbers-")))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    report = run(place, 'rows = load_dataset("somebody/numbers", split="train")\n')
    assert report["dry_run"]["rows"] == 40


def test_few_rows_of_a_large_set_are_streamed(tmp_path: Path) -> None:
    """As from a hub: the set has its declared length, and only its first rows were read."""
    from lora_doctor.dry_run.acts.data_sets import few_rows

    (tmp_path / "README.md").write_text(_CARD, encoding="utf-8")
    lines = (json.dumps({"number": n, "text": "fox"}) + "\n" for n in range(5000))
    (tmp_path / "train.jsonl").write_text("".join(lines))
    builder = datasets.load_dataset_builder(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    said: list[str] = []
    acting: Any = SimpleNamespace(rows=8, note=lambda kind, text, once="": said.append(text))
    made = few_rows(acting, builder, "train", "somebody/numbers")
    assert len(made) == 5000 and set(made["number"]) == set(range(8))
    assert "first 8 rows" in said[0]
    assert set(few_rows(acting, builder, None, "x")) == {"train"}
    small: Any = SimpleNamespace(rows=2000, note=acting.note)
    assert few_rows(small, builder, "train", "x") is None, "a small set is loaded as it is"


def test_a_stream_is_read_no_further_than_it_has_to_be(place: Path) -> None:
    script = """
def numbers():
    for number in range(10_000_000):
        assert number < 2000, "the dry run reads on and on"
        yield {"number": number}


rows = IterableDataset.from_generator(numbers).shuffle(buffer_size=100_000, seed=1)
"""
    report = run(place, script, steps=1000)
    assert report["dry_run"]["steps"] == 3
    assert report["verdict"] == "healthy"


_NUMBERS = """
rows = Dataset.from_list([{"number": n} for n in range(3000)])
"""


def test_what_a_quick_filter_leaves_is_counted(place: Path) -> None:
    report = run(place, _NUMBERS + 'rows = rows.filter(lambda row: row["number"] % 3 == 0)\n')
    assert report["dry_run"]["planned_steps"] == 250
    assert report["verdict"] == "healthy"


def test_a_length_that_is_a_guess_leaves_the_question_open(place: Path) -> None:
    """After a mapping only the rows that were mapped can be filtered: how many steps the run has is
    not known, and its schedule with it."""
    script = _NUMBERS + (
        'rows = rows.map(lambda row: {"odd": row["number"] % 3})\n'
        'rows = rows.filter(lambda row: row["odd"] == 0)\n'
    )
    report = run(place, script, code=2)
    assert report["verdict"] == "undetermined"
    assert "script.py:12 is an estimate" in report["undetermined"]
    report = run(place, script, "--rows", "3000")
    assert report["dry_run"]["planned_steps"] == 250


def test_a_model_made_from_its_config_is_shrunk_as_well(place: Path) -> None:
    """7 billion parameters that nobody has to hold."""
    script = _NUMBERS + "config = AutoConfig.from_pretrained('model')\n"
    (place / "made.py").write_text(
        _IMPORTS
        + "LIMIT = -1\n"
        + script
        + _TRAIN.replace(
            'AutoModelForCausalLM.from_pretrained("model")',
            "AutoModelForCausalLM.from_config(config)",
        )
    )
    report = dry_run(place, sys.executable, "made.py", code=0)
    assert report["verdict"] == "healthy"
    assert report["model"]["parameters"] > 6e9, "told of at full size"


def test_a_cache_file_that_a_library_names_is_read_again(tmp_path: Path) -> None:
    """TRL keeps the log probabilities of a reference model in one, and joins it to the set; nothing
    is written beside the user's rows."""
    data, acting = datasets.arrow_dataset, Acting(Session(tmp_path / "session", ""))
    (tmp_path / "user").mkdir()
    few = datasets.Dataset.from_dict({"number": list(range(300))})

    def numbered(rows: Any, places: list[int]) -> dict[str, Any]:
        return {"double": [2 * place for place in places]}

    options: Any = {"with_indices": True, "batched": True, "remove_columns": few.column_names}
    data_act._mapping(acting, data)
    try:
        named = few._get_cache_file_path("abc"), str(tmp_path / "user" / "mine.arrow")
        for file in named:
            few.map(numbered, cache_file_name=file, new_fingerprint="abc", **options)
        read = [datasets.Dataset.from_file(file)["double"][:] for file in named]
    finally:
        acting.replaced.undo()
    assert read == [[2 * number for number in range(300)]] * 2
    assert not list((tmp_path / "user").iterdir())
