"""JSON: parsing that says where, and edits that leave every other byte alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError, LimitError
from lora_doctor.limits import RECIPE_ITEMS, check_items, count_items
from lora_doctor.recipe.files.flow import Entry, Flow, insert_entry, remove_entry

_SPACE = re.compile(r"[ \t\r\n]*")


class _DuplicateKeyError(ValueError):
    """Two values for one key; which of them counts is up to the reader, so nobody should ask."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise _DuplicateKeyError(key)
        mapping[key] = value
    return mapping


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def parse(text: str, path: Path) -> dict[str, Any]:
    """The object in the text.

    Raises:
        InputError: not JSON (with the line), a key twice, or not an object.
    """
    try:
        check_items(count_items(text), RECIPE_ITEMS, "it", advice="check that it is the right file")
        value = _DECODER.decode(text)
    except LimitError as error:
        raise InputError(f"{path}: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from None
    except _DuplicateKeyError as error:
        line = _line_of_duplicate(text, str(error))
        raise InputError(f"{path}{line}: key {str(error)!r} is given twice; keep one") from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply to be a recipe") from None
    except ValueError as error:  # an integer of more than 4300 digits
        raise InputError(f"{path}: is not usable JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: is a {type(value).__name__}, not an object; a recipe has keys and values"
        )
    return value


def starts(text: str) -> dict[str, int]:
    """Where each key of the top object begins. The text has been parsed before."""
    return {entry.key: entry.start for entry in _scan(text).entries}


def set_key(text: str, key: str, value: Any) -> str:
    """The text with this key of the top object set; a new key goes to the end."""
    flow = _scan(text)
    entry = next((entry for entry in flow.entries if entry.key == key), None)
    style = _style_of(text, flow)
    if entry is None:
        written = f"{json.dumps(key, ensure_ascii=False)}: {_dump(value, style, style.multiline)}"
        return insert_entry(text, flow, written, style.newline, style.indent)
    old = text[entry.value_start : entry.value_end]
    multiline = "\n" in old if old.startswith(("[", "{")) and len(old) > 2 else style.multiline
    new = _dump(value, style, multiline)
    return text[: entry.value_start] + new + text[entry.value_end :]


def remove_key(text: str, key: str) -> str:
    """The text without this key of the top object."""
    flow = _scan(text)
    for number, entry in enumerate(flow.entries):
        if entry.key == key:
            return remove_entry(text, flow, number)
    return text


def _scan(text: str) -> Flow:
    """Where each key and value of the top object stands. The text has been parsed before."""
    position = _space(text, 0)
    start = position
    position = _space(text, position + 1)
    entries = []
    while text[position] != "}":
        key, key_end = _DECODER.raw_decode(text, position)
        value_start = _space(text, _space(text, key_end) + 1)
        _, value_end = _DECODER.raw_decode(text, value_start)
        entries.append(Entry(key, position, value_start, value_end))
        position = _space(text, value_end)
        if text[position] == ",":
            position = _space(text, position + 1)
    return Flow(start, position, tuple(entries))


def _space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


@dataclass(frozen=True)
class _Style:
    """How the file is laid out."""

    multiline: bool
    newline: str
    indent: str


def _style_of(text: str, flow: Flow) -> _Style:
    newline = "\r\n" if "\r\n" in text else "\n"
    if not flow.entries:
        return _Style("\n" in text[flow.start : flow.end], newline, "  ")
    lead = text[flow.start + 1 : flow.entries[0].start]
    multiline = "\n" in lead
    return _Style(multiline, newline, lead.rpartition("\n")[2] if multiline else "")


def _dump(value: Any, style: _Style, multiline: bool) -> str:
    """The value as JSON, indented as the file is."""
    if not multiline or not isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    unit = style.indent or "  "
    lines = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=unit).split("\n")
    return (style.newline + style.indent).join(lines)


def _line_of_duplicate(text: str, key: str) -> str:
    """``:LINE`` of the second ``key`` where it is found by its spelling, else nothing."""
    places = list(re.finditer(re.escape(json.dumps(key)) + r"[ \t\r\n]*:", text))
    return f":{text.count(chr(10), 0, places[1].start()) + 1}" if len(places) == 2 else ""
