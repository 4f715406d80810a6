"""Preference sets: whether the chosen and the rejected answer of a row differ, in the set and in
what the collator makes of it (a length limit may cut off where they differ)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_CHOSEN, _REJECTED = "chosen", "rejected"


class Compared:
    """``rows`` with two answers, of which so many are alike in the set and in the batches."""

    def __init__(self) -> None:
        self.rows = self.alike = self.alike_in_batch = 0

    def add(self, rows: Sequence[Any], batch: Mapping[str, Any]) -> None:
        """Count the rows that a batch was made of."""
        pairs = [row for row in rows if columns(row)]
        if not pairs or len(pairs) != len(rows):
            return
        same = sum(map(alike, pairs))
        in_batch = alike_in_batch(batch, len(rows))
        self.rows += len(rows)
        self.alike += same
        self.alike_in_batch += same if in_batch is None else in_batch


def columns(row: Any) -> list[tuple[str, str]]:
    """Names that belong together, such as ``chosen_ids`` and ``rejected_ids``, of a row or a batch;
    none where it has no pairs."""
    if not isinstance(row, Mapping):
        return []
    pairs = [(name, name.replace(_CHOSEN, _REJECTED)) for name in map(str, row) if _CHOSEN in name]
    return [pair for pair in pairs if pair[1] in row]


def alike(row: Mapping[str, Any]) -> bool:
    """Whether both answers of a row are the same."""
    return all(_plain(row[one]) == _plain(row[other]) for one, other in columns(row))


def alike_in_batch(batch: Mapping[str, Any], rows: int) -> int | None:
    """Of how many rows both answers are the same in a batch, which has all that are chosen before
    all that are rejected (TRL), or apart; ``None`` where it is made otherwise."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if ids is not None and len(ids) == 2 * rows:
        lines = _lines(ids, mask)
        return sum(lines[n] == lines[n + rows] for n in range(rows))
    names = next((pair for pair in columns(batch) if "input_ids" in pair[0]), None)
    if names is None:
        return None
    masks = [batch.get(name.replace("input_ids", "attention_mask")) for name in names]
    chosen, rejected = (_lines(batch[name], mask) for name, mask in zip(names, masks, strict=True))
    return sum(one == other for one, other in zip(chosen, rejected, strict=True))


def _lines(ids: Any, mask: Any) -> list[list[int]]:
    """The tokens of each line without its padding."""
    lines: list[list[int]] = _plain(ids)
    if mask is None:
        return lines
    pairs = zip(lines, _plain(mask), strict=True)
    return [[one for one, on in zip(*pair, strict=True) if on] for pair in pairs]


def _plain(value: Any) -> Any:
    """A tensor or array as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value
