"""``concise``: one line per finding for editors and grep, ``location: CODE message [fix]``.

A healthy recipe prints nothing. Where the training contract proved nothing, a line without a code
says so, because silence would be taken for health; also beside findings where a question is open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_doctor.reports._text import visible
from lora_doctor.reports._words import (
    accepted_words,
    fix_label,
    offered,
    open_words,
    ordered,
    place,
    subject,
)
from lora_doctor.results.formats import one_after_another

if TYPE_CHECKING:
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.finding import Finding

NAME = "concise"
join = one_after_another


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """Never coloured, never wrapped: a line is a record."""
    lines = [
        line(finding, diagnosis.recipe, accepted_words(finding, diagnosis))
        for finding in ordered(diagnosis.findings)
    ]
    if diagnosis.verdict == "undetermined" or diagnosis.undetermined is not None:
        lines.append(f"{subject(diagnosis)}: {open_words(diagnosis)}")
    text = "".join(f"{item}\n" for item in lines)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def line(finding: Finding, recipe: Recipe, accepted: str = "") -> str:
    """One finding on one line, with its severity, why it is ``accepted``, and its first fix at the
    end."""
    notes: list[str] = [finding.severity, accepted] if accepted else [finding.severity]
    fix = next(iter(offered(finding)), None)
    if fix is not None:
        run = "not executed" if fix.executed.outcome == "not-executed" else "executed"
        run = "read again" if fix.executed.depth == "static" else run
        notes.append(f"{fix_label(fix)} fix, {run}: {visible(fix.title, 300)}")
    location, message = visible(place(finding, recipe), 300), visible(finding.message, 1000)
    return f"{location}: {visible(finding.rule)} {message} [{', '.join(notes)}]"
