"""docs/stacks.md: what scenario tests recorded is what the page says, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import stacks_page

OLD = {"transformers": "4.37.2", "peft": "0.7.1"}
NEW = {"transformers": "5.23.0", "peft": "0.21.2"}


def record(failure: str, outcome: str, stack: dict[str, str]) -> dict[str, object]:
    return {"report": "A report", "failure": failure, "rule": "LD102", "stack": stack,
            "outcome": outcome}  # fmt: skip


def test_a_cell_reads_back_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison that keeps the page fresh rests on this."""
    records = [
        record("a | b", "found, fixed", OLD),
        record("a | b", "does not occur", NEW),
        record("a", "found, fixed by hand", NEW),
    ]
    monkeypatch.setattr(stacks_page, "PAGE", tmp_path / "stacks.md")
    stacks_page.PAGE.write_text(stacks_page.page(records), encoding="utf-8")
    assert [stacks_page.cell(item) for item in records] == [item["outcome"] for item in records]
    assert stacks_page.cell(record("a", "", OLD)) == stacks_page.NOT_RUN
    assert stacks_page.cell(record("unknown", "", NEW)) == ""
    assert stacks_page.cell(record("a", "", {"transformers": "9", "peft": "1"})) is None


def test_a_cell_says_which_fix_is_applied_only_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the page is written anew, its cells are compared without that."""
    monkeypatch.setattr(stacks_page, "PAGE", tmp_path / "stacks.md")
    plain = record("a", "found, fixed", NEW)
    stacks_page.PAGE.write_text(stacks_page.page([plain]).replace(stacks_page.HEAD, ""))
    assert not stacks_page.tells_on_demand()
    outcome = f"found, fixed{stacks_page.ON_DEMAND}"
    stacks_page.PAGE.write_text(stacks_page.page([record("a", outcome, NEW)]))
    assert stacks_page.tells_on_demand() and stacks_page.cell(plain) == outcome


def test_the_committed_page_has_five_stacks_and_no_gap() -> None:
    text = stacks_page.PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(row.split(" | ")) for row in rows} == {7}
    assert f"| {stacks_page.NOT_RUN} |" not in text
