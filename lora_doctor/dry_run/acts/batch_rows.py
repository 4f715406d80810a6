"""What is kept of a batch: token ids and labels as plain lists, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Integers of a batch that are kept for what is supervised.
MOST_IDS = 200_000
#: Rows of a large batch that the training contract is run on: it takes some thirty forwards, each
#: as long as one of the user's. Large: so many numbers go in as sound or images, or come out as
#: logits.
_ROWS, _LARGE_INPUT, _LARGE_OUTPUT = 2, 400_000, 4_000_000
#: A label that counts for nothing.
_IGNORED = -100
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


def fewer_rows(batch: dict[str, Any], vocabulary: int | None = None) -> dict[str, Any]:
    """Two rows of a large batch whose tensors all have its rows; any other batch as it is.

    Of texts these are the one with the most padding and the one with the least, among those that
    have labels: what goes wrong with padding alone still does.

    Args:
        batch: what forward was given, by name.
        vocabulary: logits for each token; ``None`` where the model gives none.
    """
    tensors = {name: value for name, value in batch.items() if is_tensor(value) and value.dim()}
    rows = {one.shape[0] for one in tensors.values()}
    large = _is_large(tensors, vocabulary or 0)
    if not large or len(rows) != 1 or rows.pop() <= _ROWS:
        return batch
    kept = _telling_rows(tensors)
    if kept is None:
        return batch
    return {name: value[kept] if name in tensors else value for name, value in batch.items()}


def _is_large(tensors: Mapping[str, Any], vocabulary: int) -> bool:
    floats = (one for one in tensors.values() if one.is_floating_point())
    tokens = [tensors[name].numel() for name in ("input_ids", "labels") if name in tensors]
    return any(one.numel() > _LARGE_INPUT for one in floats) or (
        max(tokens, default=0) * vocabulary > _LARGE_OUTPUT
    )


def _telling_rows(tensors: Mapping[str, Any]) -> list[int] | None:
    """``None`` where fewer than two rows have labels."""
    some = next(iter(tensors.values()))
    candidates = list(range(some.shape[0]))
    labels, mask = tensors.get("labels"), tensors.get("attention_mask")
    if labels is not None and not labels.is_floating_point():
        candidates = [row for row in candidates if bool((labels[row] != _IGNORED).any())]
    if len(candidates) < _ROWS:
        return None
    if mask is None:
        return candidates[:_ROWS]
    seen = {row: float(mask[row].sum()) for row in candidates}
    least = min(candidates, key=seen.__getitem__)
    most = max((row for row in candidates if row != least), key=seen.__getitem__)
    return sorted((least, most))
