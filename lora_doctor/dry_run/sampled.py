"""Which rows of a dry run are judged: those of its first batches, or a sample of the whole set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_doctor.supervision.batches import rows_of
from lora_doctor.supervision.rows import IGNORED, Row

Batch = Mapping[str, Any]
#: What a row's labels and borders are read from.
_READ = ("labels", "completion_mask", "position_ids")


def judged_batches(
    first: Sequence[Batch], sampled: Sequence[Batch], loaded: Sequence[Batch] = ()
) -> tuple[list[Batch], str]:
    """The batches, and where they came from in words.

    Args:
        first: what forward was called with.
        sampled: what the trainer's collator made of rows spread over the set. They count only where
            rows are seen that forward gets with the labels as the collator made them.
        loaded: the first batches as the trainer's loader gave them, of which ``first`` was made.
    """
    if sampled and first and _same_form(first[0], sampled[0]):
        ours, theirs = list(rows_of(sampled)), list(rows_of(first))
        made = (*rows_of(loaded), *ours)
        known = {ids: labels for ids, *labels in map(_without_padding, made)}
        pairs = [
            (known[ids], labels) for ids, *labels in map(_without_padding, theirs) if ids in known
        ]
        if pairs and len(ours) > len(theirs) and all(_alike(*pair) for pair in pairs):
            return list(sampled), (
                f"{len(ours)} rows spread over the training set, through the run's own collator"
            )
    seen = "the first batch" if len(first) == 1 else f"the first {len(first)} batches"
    return list(first), f"{seen} of the run"


def _without_padding(row: Row) -> tuple[tuple[int, ...], list[int], set[bool]]:
    """The token ids, their labels, and whether padding has labels: how much of it there is depends
    on the other rows of the batch. Empty where there is none."""
    ids, labels, mask = list(row.input_ids), list(row.labels), row.attention_mask
    if mask is None or len(labels) != len(ids):
        return tuple(ids), labels, set()
    rows = list(zip(ids, labels, mask, strict=False))
    real = [(token, label) for token, label, on in rows if on]
    padding = {label != IGNORED for _, label, on in rows if not on}
    return tuple(token for token, _ in real), [label for _, label in real], padding


def _alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two rows have the same labels, and padding is treated alike where both have some."""
    return one[0] == other[0] and (not one[1] or not other[1] or one[1] == other[1])


def _same_form(one: Batch, other: Batch) -> bool:
    return all((name in one) == (name in other) for name in _READ)
