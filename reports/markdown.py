"""``markdown``: a table for a comment on a merge request, or a job's summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_doctor.reports import _budgets
from lora_doctor.reports._records import records, remarks, set_up
from lora_doctor.reports._verdict import verdict_text
from lora_doctor.results.formats import one_after_another

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

NAME = "markdown"
join = one_after_another


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """A heading with the verdict, and a row for each finding."""
    verdict = verdict_text(diagnosis)
    lines = [
        f"### lora-doctor: {_text(set_up(diagnosis))}",
        "",
        f"**{_text(verdict.headline)}.** {_text(verdict.explanation)}",
    ]
    found = records(diagnosis)
    if found:
        lines += ["", "| Rule | Severity | Where | What | Fix |", "| --- | --- | --- | --- | --- |"]
        for record in found:
            inside = record.file and not record.where.startswith(record.file)
            where = f"{record.file} {record.where}" if inside else record.where
            cells = (record.rule, record.level, where, record.message, record.fix)
            lines.append("| " + " | ".join(map(_text, cells)) + " |")
    budgets = _budgets.rows(diagnosis)
    if budgets:
        lines += ["", f"| {' | '.join(_budgets.HEADER)} |", "| --- | --- | --- | --- | --- |"]
        lines += ["| " + " | ".join(map(_text, row)) + " |" for row in budgets]
    for told in remarks(diagnosis):
        lines += ["", f"Note: {_text(told)}"]
    if diagnosis.next_command:
        lines += ["", "Next:", "", f"    {diagnosis.next_command}"]
    text = "\n".join(lines) + "\n"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _text(text: str) -> str:
    """Text of strangers that stays text: no markup, no HTML, no mention of anybody."""
    for sign in "\\`*_{}[]<>|#~":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("@", "@&#8203;").replace("\n", " ")
