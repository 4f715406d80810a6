"""Which rows of a dry run are judged: those of its first batches, or a sample of the whole set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_doctor.supervision.batches import rows_of

Batch = Mapping[str, Any]
#: What a row's labels and borders are read from.
_READ = ("labels", "completion_mask", "position_ids")


def judged_batches(first: Sequence[Batch], sampled: Sequence[Batch]) -> tuple[list[Batch], str]:
    """The batches, and where they came from in words.

    Args:
        first: what forward was called with.
        sampled: what the trainer's collator made of rows spread over the set. They count only where
            forward gets the labels as the collator made them.
    """
    if sampled and first and _same_form(first[0], sampled[0]):
        ours, theirs = list(rows_of(sampled)), list(rows_of(first))
        known = {tuple(row.input_ids): list(row.labels) for row in ours}
        same = all(
            known.get(tuple(row.input_ids), row.labels) == list(row.labels) for row in theirs
        )
        if same and len(ours) > len(theirs):
            return list(sampled), (
                f"{len(ours)} rows spread over the training set, through the run's own collator"
            )
    return list(first), f"the first {len(first)} batches of the run"


def _same_form(one: Batch, other: Batch) -> bool:
    return all((name in one) == (name in other) for name in _READ)
