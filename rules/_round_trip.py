"""What the rules about saving, loading and merging have in common: readings of the round trip.

Pure: reads a :class:`Case` and the :class:`Verification` that it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, Edit, EvidenceError, Measurement
from lora_doctor.rules._ablation import judged

if TYPE_CHECKING:
    from lora_doctor.rule_api import QuantizedMerge, Saving, TiedPart, Verification

#: PEFT's option that trains and saves tied weights together (0.18 and later).
TIE = "ensure_weight_tying"
#: How a merge into quantized layers is measured.
MERGED_HERE = "a trained layer of the tiny model was copied and merged"


def round_trip(case: Case) -> tuple[Verification, Saving]:
    """The training contract of the case and what its round trip through files showed.

    Raises:
        EvidenceError: the contract came to no verdict, or stopped before it saved anything.
    """
    seen = judged(case)
    if seen.saving is None:
        raise EvidenceError("the training contract stopped before the adapter was saved")
    return seen, seen.saving


def quantized_merge(case: Case) -> QuantizedMerge | None:
    """What the training contract has seen of a merge into quantized layers; ``None`` where none was
    run, or not so far."""
    if not case.reaches("tiny"):
        return None
    try:
        _, saving = round_trip(case)
    except EvidenceError:  # the rules about the contract say why
        return None
    return saving.quantized_merge


def source(seen: Verification, how: str) -> str:
    """Where a measurement comes from: the model that was run, and what was done with it."""
    return f"{seen.depth} model, {how}"


def difference(seen: Verification, name: str, what: str) -> tuple[Measurement, ...]:
    """A check of the contract as a line of evidence; none when it was skipped."""
    check = seen.check(name)
    if check is None or check.status == "skipped":
        return ()
    value = check.detail
    if isinstance(check.value, float):
        expected = check.expected.removeprefix("a relative difference of ")
        value = f"relative difference {check.value:.3g} (expected: {expected})"
    return (Measurement(what, value, source(seen, "executed")),)


def tolerance(seen: Verification) -> float:
    """Relative difference of the logits that merging may make in the dtype of this run."""
    from lora_doctor.rule_api import MERGE_TOLERANCE

    return MERGE_TOLERANCE.get(seen.dtype, 1e-4)


def trained_whole(case: Case, paths: Iterable[str]) -> list[str]:
    """``modules_to_save`` of the recipe with these modules added."""
    kept = list(case.recipe.get("modules_to_save") or ())
    return [*kept, *(path for path in paths if path not in kept)]


def matches(path: str, entry: str) -> bool:
    """Whether an entry of ``target_modules`` or ``modules_to_save`` names this module."""
    return path == entry or path.endswith(f".{entry}")


def sharing(parts: Iterable[TiedPart]) -> tuple[Measurement, ...]:
    """Which other module has the weight of each tied part, as lines of evidence."""
    return tuple(
        Measurement(f"weight of {part.path}", f"also {part.shares_with}", "tied parameters")
        for part in parts
    )


def comes_back(case: Case, edits: tuple[Edit, ...]) -> bool:
    """Whether saving, loading and merging keep the logits after these edits; it is run."""
    again = case.again(case.recipe_in_full().edit(edits), case.patches)
    if not again.has("verification"):
        return False
    other = again.verification
    if other.outcome != "passed" or other.saving is None:
        return False
    reloaded = other.saving.merged_reload
    return reloaded is None or reloaded <= tolerance(other)
