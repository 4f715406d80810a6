"""Which sets of ``datasets`` go back to the same few rows: a set that was cut and is then split has
its rows in both parts, which the user's own set has not.

A set is known again by the memory of its columns, which splitting, selecting, shuffling and
renaming leave where it is.
"""

from __future__ import annotations

from typing import Any

#: Memory of each set that was cut, and the number of the set that it goes back to. The tables are
#: kept, so that nothing else gets their place.
_cut: list[tuple[frozenset[int], int, Any]] = []
#: Number of a set to the whole that its rows were chosen from.
_whole: dict[int, Any] = {}


def remember(few: Any, of: Any = None) -> None:
    """That these are few of more rows; ``of``: the set that they were made from."""
    before = None if of is None else _number(of)
    found = memory(few)
    if found:
        _cut.append((found, len(_cut) if before is None else before, few))


def handed_on(before: Any, after: Any) -> Any:
    """``after``, which was made of all rows of ``before``: what that goes back to, this does."""
    if _number(before) is not None:
        remember(after, before)
    return after


def whole_of(data: Any) -> Any:
    """The set that the rows of ``data`` were chosen from, before it was cut; ``data`` itself where
    nothing was cut, and ``None`` where the whole is not known."""
    number = _number(data)
    return data if number is None else _whole.get(number)


def chosen_from(few: Any, whole: Any) -> None:
    """That the few rows were spread over ``whole``; the first such set stays it."""
    number = _number(few)
    if number is not None:
        _whole.setdefault(number, whole)


def share_rows(one: Any, other: Any) -> bool:
    """Whether two sets were made of the same few rows."""
    number = _number(one)
    return number is not None and number == _number(other)


def _number(data: Any) -> int | None:
    own = memory(data)
    return next((number for known, number, _ in reversed(_cut) if known & own), None)


def memory(data: Any) -> frozenset[int]:
    """Addresses of the first rows of each column; none for what is no set of ``datasets``."""
    table = getattr(getattr(data, "_data", None), "table", None)
    found: set[int] = set()
    for column in getattr(table, "columns", ()):
        for chunk in column.chunks[:1]:
            found |= {one.address for one in chunk.buffers() if one is not None and one.size}
    return frozenset(found)
