"""Evidence by comparison: the training contract once more, on a recipe that differs in one point.

A failure is put down to a setting when it goes away with that setting alone changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, Edit, EvidenceError

if TYPE_CHECKING:
    from lora_doctor.rule_api import Verification


def judged(case: Case) -> Verification:
    """The training contract of the case, when it came to a verdict.

    Raises:
        EvidenceError: it did not; the text is its reason.
    """
    verification = case.verification
    if verification.outcome == "undetermined":
        raise EvidenceError(verification.reason, limit=verification.limit)
    return verification


def with_edits(case: Case, edits: Iterable[Edit]) -> Verification:
    """The contract of the same case after ``edits``, same model, depth, patches and limits.

    Raises:
        EvidenceError: the contract cannot be run, or came to no verdict.
    """
    return judged(case.again(case.recipe_in_full().edit(edits), case.patches))


def learning(verification: Verification) -> int:
    """How many adapted layers got a gradient in all their parameters."""
    return sum(group.with_gradient for group in verification.adapters)
