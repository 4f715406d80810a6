"""What is kept of a batch: token ids and labels as plain lists, and the rows of a large one that
the training contract runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Integers of a batch that are kept for what is supervised.
MOST_IDS = 200_000
#: Rows of a large batch that the training contract is run on: it takes some thirty forwards, each
#: as long as one of the user's. Large: so many numbers go in as sound or images, or come out as
#: logits.
_ROWS, _LARGE_INPUT, _LARGE_OUTPUT = 2, 400_000, 4_000_000
#: A label that counts for nothing.
_IGNORED = -100
#: What a Trainer tells a loss of how many labels a step has.
_ITEMS = "num_items_in_batch"
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


@dataclass(frozen=True)
class Cut:
    """A batch in two parts.

    ``few``: the rows that the training contract runs on. ``rest``: the others. ``rows``: which they
    are, of ``count``. ``weights``: what the loss of each part may count for in that of all, one
    pair for each way in which a loss is made of rows.
    """

    few: dict[str, Any]
    rest: dict[str, Any]
    rows: list[int]
    count: int
    weights: list[tuple[float, float]]


def cut_rows(batch: dict[str, Any], vocabulary: int | None = None) -> Cut | None:
    """A large batch whose tensors all have its rows, as two of its rows and the others; ``None`` of
    any other. Whether two rows give alone what they give among the others is not said by it.

    Of texts these are the one with the most padding and the one with the least, among those that
    have labels: what goes wrong with padding alone still does.

    Args:
        batch: what forward was given, by name.
        vocabulary: logits for each token; ``None`` where the model gives none.
    """
    tensors = {name: value for name, value in batch.items() if is_tensor(value) and value.dim()}
    counts = {one.shape[0] for one in tensors.values()}
    # A list has one entry for each row, or for each image, or for something else.
    listed = any(isinstance(value, (list, tuple, dict)) and value for value in batch.values())
    if not _is_large(tensors, vocabulary or 0) or len(counts) != 1 or listed:
        return None
    count = counts.pop()
    kept = _telling_rows(tensors) if count > _ROWS else None
    if kept is None:
        return None
    others = [row for row in range(count) if row not in kept]
    few, rest = (
        {name: value[rows] if name in tensors else value for name, value in batch.items()}
        for rows in (kept, others)
    )
    shares = [(1.0, 1.0), (len(kept) / count, len(others) / count), *_label_shares(few, rest)]
    if _ITEMS in batch:
        shares.append(_share_items(batch, few, rest, shares[-1]))
    return Cut(few, rest, kept, count, shares)


def _label_shares(few: Mapping[str, Any], rest: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The parts of the labels that count: of those that a model moves by one, the first of a row
    counts for nothing."""
    both: list[Any] = [part["labels"] for part in (few, rest) if is_tensor(part.get("labels"))]
    if len(both) < 2 or any(one.is_floating_point() for one in both):
        return []
    shares = []
    for labels in ([one[:, 1:] for one in both if one.dim() > 1], both):
        counts = [int((one != _IGNORED).sum()) for one in labels]
        if sum(counts):
            shares.append((counts[0] / sum(counts), counts[1] / sum(counts)))
    return shares


def _share_items(
    batch: Mapping[str, Any], few: dict[str, Any], rest: dict[str, Any], share: tuple[float, float]
) -> tuple[float, float]:
    """Let the number that a Trainer has a sum divided by be that of each part's own labels;
    returns what the parts then count for."""
    whole = batch[_ITEMS]
    for part, weight in zip((few, rest), share, strict=True):
        own = max(1, round(float(whole) * weight))
        part[_ITEMS] = whole.new_full(whole.shape, own) if is_tensor(whole) else type(whole)(own)
    return float(few[_ITEMS]) / float(whole), float(rest[_ITEMS]) / float(whole)


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
