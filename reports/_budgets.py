"""Budgets in words and rows, for every format that shows those that are kept, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_doctor.reports._text import shorten, visible
from lora_doctor.results.budget import amount

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

HEADER = ("budget", "number", "limit", "outcome", "of what")
_OUTCOMES = {
    "kept": "met",
    "broken": "not met",
    "unsure": "possibly not met",
    "unmeasured": "not measured",
}


def rows(diagnosis: Diagnosis) -> list[tuple[str, str, str, str, str]]:
    """Name, number, limit, outcome, and what the number is made of or why there is none."""
    return [
        (
            visible(one.budget.name),
            amount(one.value, one.budget.unit) if one.value is not None else "?",
            one.budget.words(),
            _OUTCOMES[one.outcome],
            visible(shorten(one.detail, 300)),
        )
        for one in diagnosis.budgets
    ]
