"""Columns of a set of rows that a program writes out, followed through what it does with them."""

from __future__ import annotations

import json
from pathlib import Path

from lora_doctor.limits import PYTHON_BYTES
from lora_doctor.recipe.program.objects import text_of, top
from lora_doctor.static.program.values import (
    Call,
    Items,
    Mapping,
    NotPlainError,
    Thing,
    Value,
    constant,
)

#: Methods of a set that leave its columns as they are.
_KEEP = frozenset(
    {"select", "shuffle", "filter", "sort", "take", "skip", "shard", "repeat", "flatten_indices",
     "to_iterable_dataset"}
)  # fmt: skip
_STEPS = 50


def columns_of(value: Value | None, folder: Path | None = None) -> frozenset[str] | None:
    """The columns of a ``datasets.Dataset`` or of a list of dictionaries; ``None`` where the text
    does not say all of them. ``folder``: of the program, whose JSON lines are read where it loads
    them."""
    steps: list[Call] = []
    while isinstance(value, Thing) and value.call.receiver is not None and len(steps) < _STEPS:
        steps.append(value.call)
        value = value.call.receiver
    found = _written(value) or (_in_file(value, folder) if folder is not None else None)
    for call in reversed(steps):
        found = _after(call, found) if found is not None else None
    return found


def _written(value: Value | None) -> frozenset[str] | None:
    """Of rows as they are written out."""
    if isinstance(value, Items):
        return _of_rows(value)
    if not isinstance(value, Thing) or top(value.call.name) != "datasets":
        return None
    given = value.call.value("mapping", 0)
    if value.call.method == "from_dict" and isinstance(given, Mapping) and given.open is None:
        return frozenset(given.entries)
    if value.call.method == "from_list" and isinstance(given, Items):
        return _of_rows(given)
    return None


def _in_file(value: Value | None, folder: Path) -> frozenset[str] | None:
    """Of one file of JSON lines that is loaded as it is."""
    call = value.call if isinstance(value, Thing) else None
    if call is None or call.name != "datasets.load_dataset" or call.open is not None:
        return None
    plain = not set(call.keywords) - {"path", "data_files", "split", "cache_dir"}
    name = text_of(call.value("data_files"))
    if (
        not plain
        or len(call.positional) > 1
        or text_of(call.value("path", 0)) != "json"
        or not name
    ):
        return None
    return keys_of_lines(folder / name)


def keys_of_lines(path: Path) -> frozenset[str] | None:
    """The keys of all rows of a file of JSON lines; ``None`` where one is no object, or the file
    is not here."""
    try:
        if not path.is_file() or path.stat().st_size > PYTHON_BYTES:
            return None
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError):
        return None
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    return frozenset(key for row in rows for key in row)


def _of_rows(rows: Items) -> frozenset[str] | None:
    if rows.open is not None or not rows.items:
        return None
    found: frozenset[str] = frozenset()
    for row in rows.items:
        if not isinstance(row, Mapping) or row.open is not None:
            return None
        found |= row.entries.keys()
    return found


def _after(call: Call, columns: frozenset[str]) -> frozenset[str] | None:
    """The columns that a method leaves; ``None`` where that is not known."""
    if call.method in _KEEP:
        return columns
    if call.open is not None or not call.certain:
        return None
    if call.method == "rename_column":
        old = text_of(call.value("original_column_name", 0))
        new = text_of(call.value("new_column_name", 1))
        return columns - {old} | {new} if old is not None and new is not None else None
    if call.method == "add_column":
        name = text_of(call.value("name", 0))
        return columns | {name} if name is not None else None
    return _by_names(call, columns)


def _by_names(call: Call, columns: frozenset[str]) -> frozenset[str] | None:
    """After ``remove_columns``, ``select_columns`` and ``rename_columns``."""
    try:
        given = constant(call.value("column_names", 0) or call.value("column_mapping", 0))
    except NotPlainError:
        return None
    if call.method == "rename_columns" and isinstance(given, dict):
        return frozenset(given.get(name, name) for name in columns)
    names = {given} if isinstance(given, str) else set(given or ())
    if call.method == "remove_columns":
        return columns - names
    return frozenset(names) if call.method == "select_columns" else None
