"""Rows that a script selects, against the file beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.recipe.program import pins
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


def test_another_release_of_datasets_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    path = tmp_path / "train.py"
    path.write_text(_SCRIPT.format(code="rows.select(range(3))"))
    monkeypatch.setattr(pins, "installed_version", lambda package: "4.0")
    for pinned, told in (("4.0", 1), ("2.0", 0)):
        (tmp_path / "requirements.txt").write_text(f"datasets=={pinned}\n")
        assert len(list(selected_beyond(read_setup(path)))) == told
