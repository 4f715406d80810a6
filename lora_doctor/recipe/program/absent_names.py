"""Columns and splits that a program names, and that its data set does not have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_doctor.recipe.program.dataset_columns import columns_of
from lora_doctor.recipe.program.objects import is_none, text_of
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.value_types import type_of
from lora_doctor.static.installed.split_dictionaries import packaged_readers, stays_splits
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import (
    Argument,
    AttributeRead,
    Call,
    Items,
    Known,
    Mapping,
    NotPlainError,
    Thing,
    Value,
    constant,
)

_LOADS = "datasets.load_dataset"
#: Methods that raise for a column that is not there, and their argument of that.
_NAMING = {
    "remove_columns": ("column_names", 0), "select_columns": ("column_names", 0),
    "rename_column": ("original_column_name", 0), "rename_columns": ("column_mapping", 0),
    "sort": ("column_names", 0), "cast_column": ("column", 0), "unique": ("column", 0),
    "class_encode_column": ("column", 0), "map": ("remove_columns", None),
}  # fmt: skip
_CHAIN = 20


@dataclass(frozen=True)
class AbsentName:
    """Such a name."""

    #: The name that is asked for.
    name: str
    #: ``column`` or ``split``.
    kind: str
    #: What it is given to: a method, ``the rows`` or ``the splits``.
    use: str
    #: Those that there are.
    there: tuple[str, ...]
    #: Where it is asked for.
    place: Place


def absent_names(setup: Setup) -> Iterator[AbsentName]:
    """Each of them that is surely asked for; none where another release of datasets is pinned."""
    program = setup.program
    if "datasets" in pinned_otherwise(program):
        return
    folder = program.path.parent
    for call in program.calls:
        if call.certain and not call.guarded and call.open is None:
            yield from _of_loading(call)
            yield from _of_columns(call, folder)
    for read in program.attribute_reads:
        if read.kind == "item" and read.certain and not read.guarded:
            set_here = rf"\[\s*[\"']{re.escape(read.name)}[\"']\s*\]\s*=[^=]"
            if not any(re.search(set_here, unit.python) for unit in program.units):
                yield from _of_item(read, folder)


def _of_loading(call: Call) -> Iterator[AbsentName]:
    """``split=`` of files that have no splits of their own."""
    argument = call.argument("split", 3)
    there = _splits(call) if call.name == _LOADS else None
    named = text_of(argument.value) if argument is not None else None
    if there is None or named is None or argument is None:
        return
    for name in re.findall(r"(?:^|\+)\s*([\w.-]+)", named):
        if name not in there and name != "all":
            yield AbsentName(name, "split", "load_dataset", there, argument.span.place)


def _splits(call: Call) -> tuple[str, ...] | None:
    """The splits of files that are named one by one; ``None`` where the text does not say."""
    files = call.value("data_files")
    reader = text_of(call.value("path", 0))
    if reader not in packaged_readers() or files is None or call.value("data_dir") is not None:
        return None
    if isinstance(files, Mapping):
        return tuple(files.entries) if files.open is None else None
    listed = isinstance(files, Items) and files.open is None
    return ("train",) if listed or text_of(files) is not None else None


def _of_columns(call: Call, folder: Path) -> Iterator[AbsentName]:
    """Columns that a method of rows is given."""
    place = _NAMING.get(call.method)
    argument = call.argument(*place) if place is not None else None
    if argument is None or call.receiver is None or not _is_rows(call.receiver):
        return
    there = columns_of(call.receiver, folder)
    for name in _names(argument) if there is not None else ():
        if there is not None and name not in there:
            columns = tuple(sorted(there))
            yield AbsentName(name, "column", call.method, columns, argument.span.place)


def _names(argument: Argument) -> list[str]:
    try:
        found = constant(argument.value)
    except NotPlainError:
        return []
    names = [found] if isinstance(found, str) else list(found or ())
    return [name for name in names if isinstance(name, str)]


def _is_rows(value: Value) -> bool:
    found = type_of(value)
    return found is not None and found.of == ("datasets", "Dataset") and found.made.certain


def _of_item(read: AttributeRead, folder: Path) -> Iterator[AbsentName]:
    """``rows["train"]``, where the rows are those of one split; ``splits["test"]``."""
    if _is_rows(read.owner):
        there = columns_of(read.owner, folder)
        split = _split_of(read.owner)
        if there is not None and read.name not in there:
            yield AbsentName(read.name, "column", "the rows", tuple(sorted(there)), read.span.place)
        elif there is None and read.name == split:
            yield AbsentName(read.name, "column", "the rows of one split", (), read.span.place)
        return
    splits = _splits_behind(read.owner)
    if splits is not None and read.name not in splits:
        yield AbsentName(read.name, "split", "the splits", splits, read.span.place)


def _loaded(value: Value | None) -> Call | None:
    """The call that loaded rows, behind methods of theirs."""
    for _ in range(_CHAIN):
        if not isinstance(value, Thing):
            return None
        if value.call.receiver is None:
            return value.call if value.call.name == _LOADS else None
        value = value.call.receiver
    return None


def _split_of(value: Value) -> str | None:
    """The one split that was loaded, where no step in between may have made a column of its
    name."""
    call = _loaded(value)
    named = text_of(call.value("split", 3)) if call is not None else None
    return named if named in ("train", "test", "validation") else None


def _splits_behind(value: Thing) -> tuple[str, ...] | None:
    """The splits of all that was loaded, behind methods that keep them, or of one that was split
    in two."""
    one: Value | None = value
    for _ in range(_CHAIN):
        if not isinstance(one, Thing) or not one.call.certain:
            return None
        call = one.call
        if call.name == _LOADS:
            asked = call.value("split", 3)
            streams = call.value("streaming")
            plain = streams is None or isinstance(streams, Known)
            return _splits(call) if plain and (asked is None or is_none(asked)) else None
        if call.method == "train_test_split" and _is_rows_of(call.receiver):
            return ("train", "test")
        if not stays_splits("DatasetDict", call.method):
            return None
        one = call.receiver
    return None


def _is_rows_of(value: Value | None) -> bool:
    return value is not None and _is_rows(value)
