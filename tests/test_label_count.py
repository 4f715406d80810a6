"""How many labels there are, by what the program gives its model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.evidence.supervision import gather
from lora_doctor.recipe.program.label_count import label_count
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.static.model_source import parse_model


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("", None),
        (", num_labels=5", 5),
        (", id2label={0: 'a', 1: 'b', 2: 'c'}", 3),
        (", id2label=names()", 0),
        (", config=AutoConfig.from_pretrained('m', num_labels=5)", 0),
        (", **options()", 0),
    ],
)
def test_what_the_program_gives_the_model(tmp_path: Path, given: str, count: int | None) -> None:
    """What is given and not known must not be taken for the config's number."""
    file = tmp_path / "train.py"
    file.write_text(
        "from peft import LoraConfig, get_peft_model\n"
        "from transformers import AutoConfig, AutoModelForSequenceClassification\n"
        f"model = AutoModelForSequenceClassification.from_pretrained('m'{given})\n"
        "get_peft_model(model, LoraConfig(task_type='SEQ_CLS'))\n"
    )
    assert label_count(read_setup(file)) == count


@pytest.mark.parametrize(
    ("task", "more", "wrong"),
    [
        ("SEQ_CLS", {"by_default": True}, 3),
        ("SEQ_CLS", {"classes": 5}, 0),
        ("SEQ_CLS", {"classes": 1}, 0),
        ("SEQ_CLS", {"classes": 0}, 0),
        ("SEQ_CLS", {}, 0),
        ("CAUSAL_LM", {"by_default": True}, 0),
    ],
)
def test_labels_beyond_the_classes_of_the_model(
    tmp_path: Path, task: str, more: dict[str, object], wrong: int
) -> None:
    """A model that is given no number of classes has two; one class is a regression."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "one two", "label": {n}}}\n' for n in range(5)))
    data = {"file": str(rows), "rows": 5, "samples": "none", "evaluation": None, **more}
    recipe = {"values": {"task_type": task}, "origins": {}, "complete": False}
    found = gather(parse_model("tests/folders/chat_model").for_child(), recipe, data=data)
    assert len(found["labels_out_of_range"]["numbers"]) == wrong
