"""A training set whose rows all have the same class: a set that is sorted by class and was cut to
its first rows, for one. All rows are looked at, of a set that was cut for the dry run those of the
whole set: a class that is rare may be in none of a few."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lora_doctor.dry_run.acts import cut_sets
from lora_doctor.dry_run.acts.acting import Acting

#: Names of the column, in the order in which collators take them.
_NAMES = ("label", "labels")
#: Rows of which it means something, and rows of other sets than those of ``datasets`` that are
#: looked at.
_LEAST, _MOST = 16, 20_000


def tell(acting: Acting, trainer: Any) -> None:
    """Tell the class that all rows have; nothing where there are more, or no classes."""
    if any(note["note"] == "sampled" for note in acting.seen("note")) or acting.seen("synthetic"):
        return  # the first rows of a set, which may well be sorted
    with acting.ours():
        try:
            found = _one_label(getattr(trainer, "train_dataset", None))
        except Exception as error:  # noqa: BLE001 - a set of the user's own
            acting.journal.tell("no_labels", reason=f"{type(error).__name__}: {error}"[:300])
            return
    if found is not None:
        acting.journal.tell("one_label", **found)


def _one_label(data: Any) -> dict[str, Any] | None:
    names = getattr(data, "column_names", None)
    if hasattr(data, "unique") and isinstance(names, list):
        return _of_columns(cut_sets.whole_of(data), data)
    if data is None or not hasattr(data, "__len__") or not hasattr(type(data), "__getitem__"):
        return None
    if not _LEAST <= len(data) <= _MOST:
        return None
    rows = [data[number] for number in range(len(data))] if isinstance(data, list) else []
    for name in _NAMES:
        if rows and all(isinstance(row, Mapping) and name in row for row in rows):
            return _alike(name, (row[name] for row in rows), len(rows))
    return None


def _of_columns(whole: Any, data: Any) -> dict[str, Any] | None:
    """Of a set of ``datasets``; its memory is read, no row is made. ``whole``: what its rows were
    chosen from, whose column may have had another name."""
    if whole is None or len(whole) < _LEAST:
        return None
    own, before = (_column(one) for one in (data, whole))
    if own is None or before is None or _alike(before, whole.unique(before), len(whole)) is None:
        return None
    return _alike(own, data.unique(own), len(data))


def _column(data: Any) -> str | None:
    return next((one for one in _NAMES if one in data.column_names), None)


def _alike(name: str, values: Iterable[Any], rows: int) -> dict[str, Any] | None:
    found: set[Any] = set()
    for value in values:
        plain = value.item() if hasattr(value, "item") and not getattr(value, "ndim", 0) else value
        if not isinstance(plain, (bool, int)):
            return None
        found.add(plain)
        if len(found) > 1:
            return None
    return {"column": name, "label": str(next(iter(found))), "rows": rows} if found else None
