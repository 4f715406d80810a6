"""Rows that a script selects, against the file beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.program.selected_rows import selected_beyond

_SCRIPT = """
from datasets import load_dataset
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("some/model")
rows = load_dataset("json", data_files="rows.jsonl", split="train")
{code}
"""


@pytest.mark.parametrize(
    ("code", "text", "asked"),
    [
        ("rows.select(range(3))", '{"a": 1}\n{"a": 2}\n', 3),
        ("rows.shuffle(seed=1).map(print).select(range(1, 3))", '{"a": 1}\n{"a": 2}\n', 3),
        ("rows.select(range(3))", '[{"a": 1}, {"a": 2}]', 3),
        ("rows.select(range(2))", '{"a": 1}\n\n{"a": 2}', 0),
        ("rows.select(range(3))", '{"a":\n1}\n{"a": 2}', 0),
        ("rows.map(print, batched=True).select(range(3))", '{"a": 1}\n', 0),
        ("rows.filter(print).select(range(3))", '{"a": 1}\n', 0),
        ("rows.select(range(min(3, len(rows))))", '{"a": 1}\n', 0),
        ("if rows:\n    rows.select(range(3))", '{"a": 1}\n', 0),
        ("load_dataset('json', split='train').select(range(3))", '{"a": 1}\n', 0),
    ],
)
def test_rows_beyond_the_last_are_told(tmp_path: Path, code: str, text: str, asked: int) -> None:
    """And nothing where more or fewer rows may reach the call than the file has."""
    (tmp_path / "rows.jsonl").write_text(text)
    path = tmp_path / "train.py"
    path.write_text(_SCRIPT.format(code=code))
    assert [one.asked for one in selected_beyond(read_setup(path))] == [asked] * bool(asked)
