"""What is kept of a batch: token ids and labels as plain lists, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Integers of a batch that are kept for what is supervised.
MOST_IDS = 200_000
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
