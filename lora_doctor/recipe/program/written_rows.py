"""Rows that a program writes out, or reads from a file beside it, as they reach its trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

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

#: So many rows are enough to see what a trainer makes of their columns.
MOST = 16
#: Methods of a set that leave what is in its rows as it is.
_KEEP = frozenset({"select", "shuffle", "sort", "take", "skip", "shard", "flatten_indices"})
_STEPS = 50
_Rows = list[dict[str, Any]]
_T = TypeVar("_T")


def written_rows(value: Value | None, folder: Path) -> _Rows | None:
    """Some rows of a ``datasets.Dataset``; ``None`` where the text does not say what is in
    them. ``folder``: where the program runs."""
    steps: list[Call] = []
    while isinstance(value, Thing) and value.call.receiver is not None and len(steps) < _STEPS:
        steps.append(value.call)
        value = value.call.receiver
    try:
        found = _made(value, folder)
        for call in reversed(steps):
            found = _after(call, found) if found else None
    except NotPlainError:
        return None
    return found or None


def _made(value: Value | None, folder: Path) -> _Rows | None:
    if not isinstance(value, Thing) or top(value.call.name) != "datasets":
        return None
    call = value.call
    if call.open is not None or not call.certain:
        return None
    if call.method == "from_dict" and isinstance(call.value("mapping", 0), Mapping):
        columns = {name: _spread(list(cells)) for name, cells in _plain(call, "mapping").items()}
        return [dict(zip(columns, cells, strict=True))
                for cells in zip(*columns.values(), strict=True)]  # fmt: skip
    if call.method == "from_list":
        given = call.value("mapping", 0)
        rows = given.items if isinstance(given, Items) and given.open is None else []
        return _all_rows([constant(one) for one in _spread(rows)])
    return _of_file(call, folder) if call.method == "load_dataset" else None


def _plain(call: Call, name: str) -> dict[str, Any]:
    found = constant(call.value(name, 0))
    return found if isinstance(found, dict) else {}


def _of_file(call: Call, folder: Path) -> _Rows | None:
    """``load_dataset("json", data_files="rows.jsonl", split="train")``."""
    named = text_of(call.value("data_files"))
    if text_of(call.value("path", 0)) != "json" or text_of(call.value("split")) != "train":
        return None
    if named is None or set(call.keywords) - {"data_files", "split", "path"}:
        return None
    path = folder / named
    try:
        if not path.is_file() or path.stat().st_size > PYTHON_BYTES:
            return None
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            return _all_rows(_spread(list(json.loads(text))))
        return _all_rows([json.loads(one) for one in _spread(text.strip().splitlines()) if one])
    except (OSError, ValueError):
        return None


def _spread(rows: Sequence[_T]) -> list[_T]:
    """Rows of the whole set: it may be sorted by what its rows are."""
    last = min(MOST, len(rows)) - 1
    return [rows[round(n * (len(rows) - 1) / max(last, 1))] for n in range(last + 1)]


def _all_rows(found: Sequence[Any]) -> _Rows | None:
    if not all(isinstance(row, dict) for row in found):
        return None
    return [dict(row) for row in found]


def _after(call: Call, rows: _Rows) -> _Rows | None:
    """What a method leaves of the rows; ``None`` where that is not known."""
    if call.method in _KEEP:
        return rows
    if call.open is not None or not call.certain:
        return None
    if call.method == "rename_column":
        old = text_of(call.value("original_column_name", 0))
        new = text_of(call.value("new_column_name", 1))
        return _renamed(rows, {old: new}) if old and new else None
    names = constant(call.value("column_names", 0) or call.value("column_mapping", 0))
    if call.method == "rename_columns" and isinstance(names, dict):
        return _renamed(rows, names)
    chosen = {names} if isinstance(names, str) else set(names or ())
    if call.method == "remove_columns":
        return [{key: one for key, one in row.items() if key not in chosen} for row in rows]
    if call.method == "select_columns":
        return [{key: row[key] for key in chosen if key in row} for row in rows]
    return None


def _renamed(rows: _Rows, names: dict[str, str]) -> _Rows:
    return [{names.get(key, key): one for key, one in row.items()} for row in rows]
