"""What the rules about gradients, pairs, rewards and labels of a run have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lora_doctor.rule_api import Case, Location

if TYPE_CHECKING:
    from lora_doctor.rule_api import TrainingSignal

#: A log with the same loss three times in a row; 0.693 is where DPO begins, small ones are rounded.
SAME_LOSS = (
    r"'loss': '?((?!0\.693)(?:[1-9]\d*\.\d{2,}|0\.[1-9]\d{2,}))'?,"
    r"(?:(?:(?!'loss').){1,200}'loss': '?\1'?[,}]){2}"
)
#: Where the numbers come from.
STEPS = "the first optimizer steps of the run"


def signal(case: Case) -> TrainingSignal:
    """What the run has to learn from.

    Raises:
        EvidenceError: there was no dry run.
    """
    return case.dry_run.signal


def at(file: str, line: int, otherwise: str) -> Location:
    """A line of the user's, or what is meant where none is known."""
    return Location("file", file, line) if file else Location("environment", otherwise)


def contract_failed(case: Case, check: str) -> bool:
    """Whether the training contract has failed this check: the model itself is the cause then."""
    if not case.has("tiny"):
        return False
    return any(one.name == check for one in case.tiny.failed_checks)


def without_labels(case: Case) -> Literal["all", "some", "none"]:
    """How many rows have no label that counts: their loss is 0 or NaN (LD901)."""
    if not case.has("supervision") or not case.supervision.nothing:
        return "none"
    found = case.supervision
    return "all" if found.nothing.count == found.judged else "some"
