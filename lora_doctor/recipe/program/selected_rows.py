"""Rows that a program selects of a file beside it, and how many that file has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_doctor.limits import PYTHON_BYTES
from lora_doctor.recipe.program.objects import text_of
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Thing, Value

#: Methods that leave as many rows as there were; ``map`` does so without ``batched``.
_KEEP = frozenset(
    ["shuffle", "sort", "map", "rename_column", "rename_columns", "remove_columns",
     "select_columns", "flatten_indices", "with_format", "cast_column"]
)  # fmt: skip
_RANGE = re.compile(r"range\((?:\d+, *)?(\d+)\)")
_CHAIN = 20


@dataclass(frozen=True)
class SelectedRows:
    """A selection that reaches beyond the last row."""

    #: How many rows the range asks for, from the first one on.
    asked: int
    #: How many the file has.
    rows: int
    #: The file, as the program names it.
    file: str
    #: Where they are selected.
    place: Place


def selected_beyond(setup: Setup) -> Iterator[SelectedRows]:
    """Each selection by ``range`` that surely runs; none where another datasets is pinned."""
    if "datasets" in pinned_otherwise(setup.program):
        return
    for call in setup.program.calls:
        given = call.argument("indices", 0) if call.method == "select" else None
        if given is None or not call.certain or call.guarded:
            continue
        asked = _RANGE.fullmatch(given.span.text.strip())
        name = _file_of(call.receiver)
        rows = _count(setup.program.path.parent / name) if asked and name else None
        if asked and name and rows is not None and int(asked[1]) > rows:
            yield SelectedRows(int(asked[1]), rows, name, call.place)


def _file_of(value: Value | None) -> str | None:
    """The JSON file whose rows these are, all of them."""
    for _ in range(_CHAIN):
        if not isinstance(value, Thing) or not value.call.certain or value.call.open is not None:
            return None
        call = value.call
        if call.receiver is None:
            return _named(call)
        if call.method not in _KEEP or call.argument("batched") is not None:
            return None
        value = call.receiver
    return None


def _named(call: Call) -> str | None:
    whole = text_of(call.value("path", 0)) == "json" and text_of(call.value("split")) == "train"
    plain = not set(call.keywords) - {"path", "data_files", "split"} and len(call.positional) < 2
    if call.name != "datasets.load_dataset" or not whole or not plain:
        return None
    return text_of(call.value("data_files"))


def _count(path: Path) -> int | None:
    """The rows of a file of JSON lines, or of one list; ``None`` where that is not known."""
    try:
        if not path.is_file() or path.stat().st_size > PYTHON_BYTES:
            return None
        text = path.read_text(encoding="utf-8").strip()
        if text.startswith("["):
            found = json.loads(text)
            return len(found) if isinstance(found, list) else None
    except (OSError, ValueError, RecursionError):
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    whole = all(line.startswith("{") and line.endswith("}") for line in lines)
    return len(lines) if whole else None
