"""Numbers that depend on the weights: only those of the weights that the user trains from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, EvidenceError, Severity

if TYPE_CHECKING:
    from lora_doctor.rule_api import Observations


def observed(case: Case) -> Observations:
    """What was measured while the training contract ran, on the user's own weights.

    Raises:
        EvidenceError: it did not get as far as a forward, or ran on random weights of ours.
    """
    verification = case.verification
    seen = verification.observations
    if verification.outcome == "undetermined" and not seen.user_weights:
        raise EvidenceError(verification.reason, limit=verification.limit)
    if not seen.user_weights:
        raise EvidenceError(
            "needs real weights (the tiny model's are random): use --depth full, a loaded module "
            "or a factory",
            lacks="weights",
        )
    return seen


def of_batch(seen: Observations) -> tuple[str, Severity]:
    """What the numbers were measured on, in words, and how much weight a finding from them has."""
    if seen.inputs == "own":
        return "your batch", "warning"
    return "a batch made by lora-doctor, with random audio or images", "info"
