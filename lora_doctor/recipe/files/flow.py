"""Splicing ``{key: value, ...}``: what JSON objects and YAML flow mappings have in common."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One key and its value; positions are character offsets into the text, ends exclusive."""

    key: str
    start: int
    value_start: int
    value_end: int


@dataclass(frozen=True)
class Flow:
    """``start`` is the offset of the opening brace, ``end`` that of the closing one."""

    start: int
    end: int
    entries: tuple[Entry, ...]


def insert_entry(text: str, flow: Flow, written: str, newline: str, indent: str) -> str:
    """The text with ``written`` (a key and its value) as the last entry.

    Where the last key stands on its own line, so will the new one, with ``indent`` before it.
    """
    if not flow.entries:
        inner = text[flow.start + 1 : flow.end]
        if "\n" in inner:
            inner = inner.rstrip() + newline + indent + written + newline
            return text[: flow.start + 1] + inner + text[flow.end :]
        return text[: flow.start + 1] + written + text[flow.end :]
    last = flow.entries[-1]
    line_start = text.rfind("\n", 0, last.start) + 1
    own_line = line_start > flow.start and not text[line_start : last.start].strip()
    position = last.value_end
    comma = re.compile(r"\s*,").match(text, position, flow.end)
    if comma:
        position = comma.end()
    separator = "" if comma else ","
    trailing = "," if comma else ""
    if not own_line:
        return text[:position] + separator + " " + written + trailing + text[position:]
    # A comment behind the last value stays behind it.
    line_end = _line_end(text, position)
    if line_end > flow.end:
        line_end = position
    new_line = newline + text[line_start : last.start] + written + trailing
    return text[:position] + separator + text[position:line_end] + new_line + text[line_end:]


def remove_entry(text: str, flow: Flow, number: int) -> str:
    """The text without an entry, its comma and, where it stood on its own line, its line."""
    entries = flow.entries
    if number + 1 < len(entries):
        return text[: entries[number].start] + text[entries[number + 1].start :]
    if number:
        return text[: entries[number - 1].value_end] + text[entries[number].value_end :]
    return text[: flow.start + 1] + text[flow.end :]


def _line_end(text: str, position: int) -> int:
    """Where the line ends, before its line break."""
    end = text.find("\n", position)
    end = len(text) if end < 0 else end
    return end - 1 if end > position and text[end - 1] == "\r" else end
