"""Rows out of a data file: a sample that is spread over the whole of it, never its head.

JSON lines and CSV are gone through twice, once to count and once to pick; of Parquet and Arrow only
the parts with picked rows are read. Everything is bounded by ``lora_doctor.limits``.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError, InputError, LimitError
from lora_doctor.limits import (
    DATA_BYTES,
    DATA_JSON_BYTES,
    DATA_JSON_ITEMS,
    DATA_ROW_BYTES,
    check_bytes,
)
from lora_doctor.static.piece import parse_json

#: Endings of a file's name, with how it is read.
FORMATS = {
    ".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
#: Names under which a JSON file keeps its list of rows.
_LISTS = ("data", "train", "rows", "examples", "instances")
_SEED = 20_24


@dataclass(frozen=True)
class DataFile:
    """Picked rows, each with its number from 1, and how many rows there are."""

    rows: Sequence[tuple[int, Mapping[str, Any]]]
    total: int


class _Unusable(Exception):
    """A row that is no row; the text says why."""


def check_file(path: Path) -> None:
    """Raise InputError where the file cannot be a data file, before anything is started."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            f"data {str(path)!r}: is read as one of {', '.join(FORMATS)}, by its suffix"
        )
    if not path.is_file():
        raise InputError(f"data {str(path)!r}: no such file")


def read_rows(path: Path, wanted: int) -> DataFile:
    """At most ``wanted`` rows, spread over the file.

    Raises:
        InputError: the file is not what its name says, or a row is no mapping.
        EvidenceError: it is beyond a limit, or a package to read it is missing.
    """
    check_file(path)
    try:
        found = _reader(path)(path, wanted)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data {str(path)!r}: cannot be read: {error}") from None
    except _Unusable as error:
        raise InputError(f"data {str(path)!r}: {error}") from None
    if not found.total:
        raise InputError(f"data {str(path)!r}: has no rows")
    return found


def count_rows(path: Path, wanted: int) -> DataFile:
    """As :func:`read_rows`; a set without rows is no error."""
    try:
        return _reader(path)(path, wanted)
    except (OSError, UnicodeDecodeError, csv.Error, _Unusable) as error:
        raise InputError(f"data {str(path)!r}: cannot be read: {error}") from None


def fingerprint(row: Mapping[str, Any]) -> str:
    """The same for rows that are the same, word for word, whatever the order of their columns."""
    text = json.dumps(row, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def spread(total: int, wanted: int) -> list[int]:
    """``wanted`` of ``total`` indices in order, one at random out of each of as many parts of equal
    size; the same ones each time."""
    if total <= wanted:
        return list(range(total))
    chance = random.Random(_SEED)
    edges = [index * total // wanted for index in range(wanted + 1)]
    return [chance.randrange(low, high) for low, high in pairwise(edges)]


def _reader(path: Path) -> Callable[[Path, int], DataFile]:
    return {
        "lines": _read_lines, "json": _read_json, "csv": _read_csv,
        "parquet": _read_parquet, "arrow": _read_arrow,
    }[FORMATS[path.suffix.lower()]]  # fmt: skip


def _read_lines(path: Path, wanted: int) -> DataFile:
    check_bytes(path.stat().st_size, DATA_BYTES, path.name)
    total = sum(1 for _ in _lines(path))
    picked = set(spread(total, wanted))
    rows = [
        (index + 1, _row(_parsed(line, number, path), number))
        for index, (number, line) in enumerate(_lines(path))
        if index in picked
    ]
    return DataFile(rows, total)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers in the file."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(DATA_ROW_BYTES + 1):
            number += 1
            if len(line) > DATA_ROW_BYTES:
                raise LimitError(
                    f"line {number} of {path.name} has more than the {DATA_ROW_BYTES:,} bytes that "
                    "a row may have"
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line


def _parsed(line: bytes, number: int, path: Path) -> Any:
    try:
        return parse_json(line, f"line {number} of {path.name}", items=DATA_JSON_ITEMS)
    except LimitError:
        raise
    except EvidenceError as error:
        raise _Unusable(str(error)) from None


def _row(value: Any, number: int) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise _Unusable(f"row {number} is a {kind}; a row is an object with named columns")
    return value


def _read_json(path: Path, wanted: int) -> DataFile:
    check_bytes(path.stat().st_size, DATA_JSON_BYTES, path.name, "write it as JSON lines")
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        value = parse_json(content, path.name, items=DATA_JSON_ITEMS)
    except LimitError:
        raise
    except EvidenceError as error:
        if content.lstrip().startswith(b"{") and b"\n{" in content:
            return _read_lines(path, wanted)  # JSON lines under the name of JSON
        raise _Unusable(str(error)) from None
    if isinstance(value, dict):
        named = next((value[key] for key in _LISTS if isinstance(value.get(key), list)), None)
        value = [value] if named is None else named
    if not isinstance(value, list):
        raise _Unusable("is not a list of rows")
    picked = spread(len(value), wanted)
    return DataFile([(n + 1, _row(value[n], n + 1)) for n in picked], len(value))


def _read_csv(path: Path, wanted: int) -> DataFile:
    check_bytes(path.stat().st_size, DATA_BYTES, path.name)
    csv.field_size_limit(DATA_ROW_BYTES)
    total = sum(1 for _ in _records(path))
    picked = set(spread(total, wanted))
    rows = [
        (index + 1, {key: value for key, value in record.items() if key is not None})
        for index, record in enumerate(_records(path))
        if index in picked
    ]
    return DataFile(rows, total)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as stream:
        yield from csv.DictReader(stream, delimiter=delimiter)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise EvidenceError(
            f"{path.name} is read with pyarrow, which is not installed; pip install pyarrow, or "
            "write the rows as JSON lines",
            remedy="package",
        ) from None
    return pyarrow


def _read_parquet(path: Path, wanted: int) -> DataFile:
    arrow = _pyarrow(path)
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        total = file.metadata.num_rows
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        return DataFile(_of_parts(sizes, file.read_row_group, spread(total, wanted)), total)
    except arrow.ArrowException as error:
        raise _Unusable(f"is not a Parquet file: {error}") from None


def _read_arrow(path: Path, wanted: int) -> DataFile:
    arrow = _pyarrow(path)
    import pyarrow.ipc as ipc

    try:
        with arrow.memory_map(str(path)) as source:
            try:
                table = ipc.open_file(source).read_all()
            except arrow.ArrowInvalid:  # what `datasets` writes is a stream
                source.seek(0)
                table = ipc.open_stream(source).read_all()
            picked = spread(table.num_rows, wanted)
            return DataFile(_of_parts([table.num_rows], lambda _: table, picked), table.num_rows)
    except arrow.ArrowException as error:
        raise _Unusable(f"is not an Arrow file: {error}") from None


def _of_parts(
    sizes: Sequence[int], read: Callable[[int], Any], picked: Sequence[int]
) -> list[tuple[int, Mapping[str, Any]]]:
    """Rows of a file in parts, of which those without a picked row are not read."""
    rows: list[tuple[int, Mapping[str, Any]]] = []
    left, first = iter(picked), 0
    index = next(left, None)
    for part, size in enumerate(sizes):
        inside = []
        while index is not None and index < first + size:
            inside.append(index)
            index = next(left, None)
        if inside:
            table = read(part)
            for number in inside:
                rows.append((number + 1, table.slice(number - first, 1).to_pylist()[0]))
        first += size
    return rows
