"""The longest row of a set of ``datasets`` that is cut: it goes the way of the others, apart from
them, so that rates of the sample stay what they are.

The row with the most text is taken before anything is mapped, and is mapped and filtered by the
user's own functions. A set is known again by the memory of its columns (`cut_sets`) and by its
length: of a part of it nobody knows whether the row is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_doctor.dry_run.acts import cut_sets
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.nn.copying import undisturbed

#: Arguments of ``map`` that tell a function where its row stands, which one row apart cannot.
_PLACES = ("with_indices", "with_rank")


@dataclass(frozen=True)
class Longest:
    """A set of the one row, as it was mapped so far."""

    row: Any
    #: Its number in the user's set, from 0.
    number: int


@dataclass(frozen=True)
class _Kept:
    memory: frozenset[int]
    length: int
    longest: Longest | None


_kept: list[_Kept] = []


def longest_of(data: Any) -> Longest | None:
    """The longest row of a set that was cut, mapped like its rows; ``None`` where it is unknown."""
    own = cut_sets.memory(data)
    found = next((one for one in reversed(_kept) if one.memory & own), None)
    return found.longest if found is not None and found.length == len(data) else None


def follow(
    acting: Acting, before: Any, after: Any, named: dict[str, Any], call: Callable[[Any], Any]
) -> None:
    """``after`` was made of ``before`` by a ``map`` or ``filter`` with these arguments: make the
    same of its longest row. ``call``: what maps or filters a set."""
    made = None
    if not any(named.get(one) for one in _PLACES):
        made = _made(acting, before, call)
    memory = cut_sets.memory(after)
    if memory:
        _kept.append(_Kept(memory, len(after), made))


def _made(acting: Acting, data: Any, call: Callable[[Any], Any]) -> Longest | None:
    with acting.ours(), undisturbed():
        try:
            longest = longest_of(data) or _chosen(data)
            row = None if longest is None else call(longest.row)
        except Exception as error:  # noqa: BLE001 - the user's own function, called once more
            reason = f"{type(error).__name__}: {error}"[:300]
            acting.journal.tell("no_longest", reason=reason)
            return None
    if longest is None or row is None or len(row) != 1:
        return None
    return Longest(row, longest.number)


def _chosen(data: Any) -> Longest | None:
    """The row with the most text of a set that is whole; ``None`` where no row has any."""
    if cut_sets.whole_of(data) is not data:
        return None
    sizes = _sizes(data)
    if sizes is None or not sizes.any():
        return None
    number = int(sizes.argmax())
    return Longest(data.select([number], keep_in_memory=True), number)


def _sizes(data: Any) -> Any:
    """Bytes of text in each row, read off the offsets of the table."""
    import numpy

    table = getattr(getattr(data, "_data", None), "table", None)
    if table is None or not len(data):
        return None
    total = numpy.zeros(table.num_rows, dtype=numpy.int64)
    for column in table.columns:
        total += numpy.concatenate([_text(chunk) for chunk in column.chunks])
    return total if data._indices is None else total[data._indices.column(0).to_numpy()]


def _text(values: Any) -> Any:
    """Bytes of text in each value of an array of arrow, also inside lists and structures."""
    import numpy
    from pyarrow import compute, types

    kind = values.type
    if types.is_string(kind) or types.is_large_string(kind):
        lengths = compute.fill_null(compute.binary_length(values), 0)
        return lengths.to_numpy(zero_copy_only=False).astype(numpy.int64)
    if types.is_list(kind) or types.is_large_list(kind):
        ends = values.offsets.to_numpy()
        until = numpy.concatenate([[0], numpy.cumsum(_text(values.values))])
        return (until[ends[1:]] - until[ends[:-1]]).astype(numpy.int64)
    found: Any = numpy.zeros(len(values), dtype=numpy.int64)
    if types.is_struct(kind):
        for field in values.flatten():
            found = found + _text(field)
    return found
