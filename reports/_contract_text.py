"""The training contract for the terminal: what failed, what was expected, what was raised."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from lora_doctor.reports._checks import check_value
from lora_doctor.reports._text import many, memory, seconds, shown, visible
from lora_doctor.reports._words import (
    ContractRow,
    both_passed_words,
    contract_rows,
    failure_words,
    shapes,
)

if TYPE_CHECKING:
    from lora_doctor.reports._page import Page
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.verification import Check, Verification

STYLES = {
    "error": "bold red", "warning": "bold yellow", "info": "bold blue",
    "good": "bold green", "open": "bold yellow",
    "+": "green", "-": "red", " ": "dim",
    "passed": "green", "failed": "bold red", "skipped": "dim",
    "safe": "green", "unproven": "yellow", "unsafe": "yellow", "manual": "blue",
}  # fmt: skip
_LABELS = ("before", "after")
MARKS = {"passed": "✓", "failed": "✗", "skipped": "·"}


def contract(page: Page, diagnosis: Diagnosis, verbose: bool) -> None:
    """The checks side by side. Without ``verbose`` only those that failed once."""
    before, after = diagnosis.before, diagnosis.after
    rows = contract_rows(before, after)
    if not rows:
        return
    page.gap()
    page.line(("Training contract", "bold"), (f"  {_run_words(before or after)}", "dim"))
    telling = [row for row in rows if verbose or _failed(row.before) or _failed(row.after)]
    if telling:
        _table(page, telling, (before, after))
    for row in telling if not verbose else ():
        for check, run in ((row.before, before), (row.after, after)):
            words = _why(check, run) if _failed(check) else ""
            if words:
                page.line((f"{visible(row.name)}: ", "dim"), words, indent=2)
    lists = "" if verbose else " (--verbose lists them)"
    page.line((f"{both_passed_words(before, after)}{lists}", "dim"), indent=2)
    quoted = _quoted(diagnosis)
    for label, run in (("before", before), ("after", after)):
        prefix = f"{label}: " if after is not None else ""
        failure = failure_words(run, quoted)
        if failure:
            page.line((prefix, "dim"), failure, indent=2)
        if verbose and run:
            _run_details(page, f"{label}, " if after is not None else "", run)


def _table(
    page: Page, rows: list[ContractRow], runs: tuple[Verification | None, Verification | None]
) -> None:
    """Where a table would be too narrow to read, a line for each run of a check."""
    both = runs[1] is not None
    if page.narrow:
        for row in rows:
            page.line(row.meaning or visible(row.name, 60), indent=2)
            for label, check, run in zip(_LABELS, (row.before, row.after), runs, strict=True):
                if check is not None:
                    page.line((f"{label}: " if both else "", "dim"), _check(check, run), indent=4)
        return
    page.table(
        ("check", "before", "after the fixes") if both else ("check", "result"),
        [
            (
                row.meaning or visible(row.name, 60),
                *map(_check, (row.before, row.after)[: 1 + both], runs),
            )
            for row in rows
        ],
        (54, 22, 22) if both else (60, 38),
    )


def _why(check: Check, run: Verification | None) -> str:
    """What was expected and what was seen; not the exception that the run itself tells."""
    words = [f"expected {visible(check.expected, 300)}"] if check.expected else []
    told = run is not None and run.failure is not None and run.failure.check == check.name
    if check.detail and not (told and check.raised is not None):
        words.append(visible(check.detail, 400))
    return "; ".join(words)


def _quoted(diagnosis: Diagnosis) -> str:
    """What the findings quote: a message that is in it is not told again."""
    values = [item.value for finding in diagnosis.findings for item in finding.evidence]
    return " ".join(" ".join(str(value).split()) for value in values if isinstance(value, str))


def _failed(check: Check | None) -> TypeGuard[Check]:
    return check is not None and check.status == "failed"


def _check(check: Check | None, run: Verification | None) -> tuple[str, str]:
    if check is None:
        return ("", "dim")
    return (f"{MARKS[check.status]} {check_value(check, run)}", STYLES[check.status])


def _run_words(run: Verification | None) -> str:
    if run is None:
        return ""
    parts = [f"depth {run.depth}", visible(run.device, 60), visible(run.dtype, 40)]
    if run.steps:
        parts.append(many(run.steps, "step"))
    if run.step_seconds is not None:
        parts.append(f"{seconds(run.step_seconds)} a step")
    if run.peak_memory is not None:
        parts.append(f"peak {memory(run.peak_memory)}")
    return ", ".join(part for part in parts if part)


def _run_details(page: Page, prefix: str, run: Verification) -> None:
    for check in run.checks:
        if check.detail or check.expected:
            told = (check.expected, check.detail)
            words = "; ".join(visible(item, 400) for item in told if item)
            page.line((f"{prefix}{visible(check.name)}: ", "dim"), words, indent=2)
    for batch in run.batches:
        inputs = shapes(batch.inputs)
        losses = f"; losses {shown(batch.losses)}" if batch.losses else ""
        page.line((f"{prefix}{visible(batch.kind)} batch: ", "dim"), f"{inputs}{losses}", indent=2)
    for group in run.adapters:
        words = f"{group.count} adapted, {group.with_gradient} with gradient, {group.moved} moved"
        page.line((f"{prefix}{visible(group.pattern, 200)}: ", "dim"), words, indent=2)
    for note in run.notes:
        if note.kind == "warned":
            page.line((prefix, "dim"), visible(note.text, 600), indent=2)
    if run.failure and run.failure.traceback:
        for text in visible(run.failure.traceback, 6000, lines=True).splitlines():
            page.line((text, "dim"), indent=4)
