"""What is kept of a batch: token ids and labels as plain lists, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Integers of a batch that are kept for what is supervised.
MOST_IDS = 200_000
#: Rows of a batch of sound or images that the training contract is run on: it takes some thirty
#: forwards, each as long as one of the user's.
_ROWS, _LARGE = 2, 400_000
_KEPT = ("input_ids", "labels", "attention_mask", "position_ids", "completion_mask")


def plain_rows(given: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Tensors of whole numbers by the names of forward's arguments; those that are too large are
    left out."""
    return {
        name: given[name].tolist()
        for name in _KEPT
        if is_tensor(given.get(name))
        and not given[name].is_floating_point()
        and given[name].numel() <= MOST_IDS
    }


def is_tensor(value: Any) -> bool:
    """Without an import of torch."""
    return hasattr(value, "detach") and hasattr(value, "numel")


def fewer_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """The first two rows of a batch whose tensors of floats are large and all have its rows; any
    other batch as it is."""
    tensors = {name: value for name, value in batch.items() if is_tensor(value)}
    large = [one for one in tensors.values() if one.is_floating_point() and one.numel() > _LARGE]
    rows = {one.shape[0] if one.dim() else 0 for one in tensors.values()}
    if not large or len(rows) != 1 or rows.pop() <= _ROWS:
        return batch
    return {name: value[:_ROWS] if name in tensors else value for name, value in batch.items()}
