"""Whether the token that ends an answer is there, and whether the loss is taken on it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

#: ``open``: the length limit cut the row, or nothing in it is supervised: nothing to be said.
End = Literal["trained", "masked", "missing", "open"]
#: Tokens in which the end is looked for: templates put a line break behind it.
NEAR = 3


def answer_end(
    ids: Sequence[int], supervised: Sequence[bool], ends: Collection[int], *, cut: bool
) -> tuple[End, int | None]:
    """The worst end among the answers of a row, and the token that was found there.

    An answer is a run of supervised tokens, which the label of the first token never joins.
    ``cut``: the row goes on beyond the length limit, so that its last answer has no end to judge.
    """
    found: tuple[End, int | None] = ("open", None)
    runs = list(_runs(supervised))
    if not ends:
        return found
    for number, (start, stop) in enumerate(runs):
        if cut and stop == len(ids):
            continue
        end, token = _end_of(ids, start, stop, ends)
        # A turn in the middle that is followed by its next part has no end of its own to miss.
        if end == "missing" and number < len(runs) - 1:
            continue
        if _rank(end) > _rank(found[0]):
            found = (end, token)
    return found


def _end_of(
    ids: Sequence[int], start: int, stop: int, ends: Collection[int]
) -> tuple[End, int | None]:
    for index in range(stop - 1, max(start, stop - NEAR) - 1, -1):
        if ids[index] in ends:
            return "trained", ids[index]
    for index in range(stop, min(len(ids), stop + NEAR)):
        if ids[index] in ends:
            return "masked", ids[index]
    return "missing", None


def _rank(end: End) -> int:
    return ("open", "trained", "missing", "masked").index(end)


def _runs(supervised: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of supervised tokens."""
    start: int | None = None
    for index, one in enumerate(supervised):
        if one and start is None:
            start = index
        elif not one and start is not None:
            yield start, index
            start = None
    if start is not None:
        yield start, len(supervised)
