"""Evidence by comparison: the training contract once more, on a recipe that differs in one point.

A failure is put down to a setting when it goes away with that setting alone changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_doctor.rule_api import CHECKS, Case, Edit, EvidenceError

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


def tried(case: Case, edits: Iterable[Edit]) -> Verification | None:
    """:func:`with_edits`; ``None`` when it came to no verdict."""
    try:
        return with_edits(case, edits)
    except EvidenceError:
        return None


def failed_in_training(case: Case) -> tuple[str, ...]:
    """Failed checks that no finding accounts for, without merging, which is no part of training."""
    return tuple(name for name in case.unexplained if name != "merge")


def holds(run: Verification | None, names: Iterable[str]) -> bool:
    """Whether these checks passed: not failed, and not left out either."""
    return run is not None and all(
        (check := run.check(name)) is not None and check.status == "passed" for name in names
    )


def said(seen: Verification, name: str) -> str:
    """What the failed check saw, in words."""
    failure, check = seen.failure, seen.check(name)
    if failure is not None and failure.check == name:
        return f"{failure.type}: {failure.message}"
    found = (check and (check.detail or check.value)) or "no"
    return f"the check {CHECKS.get(name, name)!r} failed: {found}"
