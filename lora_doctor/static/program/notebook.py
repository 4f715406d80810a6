"""Notebooks: the code cells in the JSON, and a changed cell put back, all else byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_doctor.errors import InputError
from lora_doctor.limits import JSON_DEPTH, JSON_ITEMS, check_items, count_items, step

_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_ATOM = re.compile(r"[^\s,\]}\[{\":]+")


@dataclass(frozen=True)
class CodeCell:
    """A code cell: its number from 1 over all cells, its text, and where its source stands."""

    number: int
    text: str
    start: int
    end: int


def is_notebook(text: str) -> bool:
    """Whether a text looks like a notebook: JSON with cells."""
    return text.lstrip()[:1] == "{" and '"cells"' in text


def code_cells(text: str, name: str) -> list[CodeCell]:
    """The code cells of a notebook.

    Raises:
        InputError: it is not JSON, has no cells, or is written in another language than Python.
    """
    check_items(count_items(text), JSON_ITEMS, name)
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name}: is not a notebook: {error}") from None
    except RecursionError:
        raise InputError(f"{name}: is nested too deeply to be a notebook") from None
    cells = data.get("cells") if isinstance(data, dict) else None
    if not isinstance(cells, list):
        raise InputError(f"{name}: is not a notebook of format 4: it has no list of cells")
    language = _language(data)
    if language not in ("", "python", "ipython"):
        raise InputError(f"{name}: is a notebook in {language}; only Python is read")
    spans = list(_sources(text))
    found = []
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        source = cell.get("source", "")
        lines = source if isinstance(source, list) else [source]
        if not all(isinstance(line, str) for line in lines) or number > len(spans):
            raise InputError(f"{name}: cell {number} has a source that is not text")
        span = spans[number - 1]
        if span is not None:
            found.append(CodeCell(number, "".join(lines), *span))
    return found


def _language(data: Mapping[str, object]) -> str:
    metadata = data.get("metadata")
    spec = metadata.get("kernelspec") if isinstance(metadata, dict) else None
    language = spec.get("language") if isinstance(spec, dict) else None
    return language.lower() if isinstance(language, str) else ""


def with_cells(text: str, cells: Mapping[CodeCell, str]) -> str:
    """The notebook with new texts in these cells."""
    for cell in sorted(cells, key=lambda one: one.start, reverse=True):
        written = _written(text[cell.start : cell.end], cell.text, cells[cell])
        text = text[: cell.start] + written + text[cell.end :]
    return text


def _written(literal: str, old: str, new: str) -> str:
    """The JSON of a source: a text where it was one, else lines of which the kept ones keep their
    spelling."""
    ascii_only = literal.isascii() and not old.isascii()
    if literal.startswith('"'):
        return json.dumps(new, ensure_ascii=ascii_only)
    written = [json.loads(one) for one in _literals(literal)]
    literals = list(_literals(literal))
    lines = new.splitlines(keepends=True) if _ends_in_lines(written) else [new]
    head = _common(written, lines)
    tail = _common(written[head:][::-1], lines[head:][::-1])
    middle = [json.dumps(line, ensure_ascii=ascii_only) for line in lines[head : len(lines) - tail]]
    kept = literals[len(literals) - tail :] if tail else []
    return _joined(literal, [*literals[:head], *middle, *kept])


def _ends_in_lines(written: list[str]) -> bool:
    return "".join(written).splitlines(keepends=True) == written


def _common(one: list[str], other: list[str]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def _literals(array: str) -> Iterator[str]:
    for found in _STRING.finditer(array):
        step()
        yield found[0]


def _joined(array: str, items: list[str]) -> str:
    """The items between the same brackets, spaces and line ends as before."""
    spans = [found.span() for found in _STRING.finditer(array)]
    if not spans:
        return "[" + ", ".join(items) + "]"
    between = array[spans[0][1] : spans[1][0]] if len(spans) > 1 else "," + array[1 : spans[0][0]]
    return array[: spans[0][0]] + between.join(items) + array[spans[-1][1] :]


def _sources(text: str) -> Iterator[tuple[int, int] | None]:
    """Where the source of each cell stands, ``None`` for one without."""
    for key, start, _ in _members(text, _skip(text, 0)):
        if key == "cells":
            for cell, _ in _elements(text, start):
                spans = {name: (begin, end) for name, begin, end in _members(text, cell)}
                yield spans.get("source")


def _members(text: str, position: int) -> Iterator[tuple[str, int, int]]:
    """Key, and where its value begins and ends, of an object."""
    if text[position] != "{":
        return
    position = _skip(text, position + 1)
    while text[position] != "}":
        end = _end_of_string(text, position)
        key = json.loads(text[position:end])
        start = _skip(text, _skip(text, end) + 1)
        end = _end_of_value(text, start)
        yield key, start, end
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _elements(text: str, position: int) -> Iterator[tuple[int, int]]:
    position = _skip(text, position + 1)
    while text[position] != "]":
        end = _end_of_value(text, position)
        yield position, end
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _end_of_string(text: str, start: int) -> int:
    found = _STRING.match(text, start)
    return found.end() if found else len(text)


def _end_of_value(text: str, start: int) -> int:
    """Behind the value that begins here; the text is JSON, that was seen before."""
    if text[start] == '"':
        return _end_of_string(text, start)
    if text[start] not in "[{":
        found = _ATOM.match(text, start)
        return found.end() if found else start
    depth, position = 0, start
    while True:
        character = text[position]
        if character == '"':
            position = _end_of_string(text, position)
            continue
        depth += (character in "[{") - (character in "]}")
        check_items(depth, JSON_DEPTH, "a notebook", "levels")
        position += 1
        if depth == 0:
            return position
