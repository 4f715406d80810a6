"""TOML that a program reads, with the lines in which its values stand."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from lora_doctor.limits import step
from lora_doctor.static.program.units import Span, Unit
from lora_doctor.static.program.values import Items, Known, Mapping, Unknown, Value

#: ``[lora.training]``, and ``rank = 8``; keys may be in quotes and have dots.
_TABLE = re.compile(r"[ \t]*\[([^\[\]\n]+)\][ \t]*(?:#.*)?")
_ENTRY = re.compile(r"[ \t]*([\w\"'-][^=\n]*)=")
#: Comments and texts; those of several lines are the group.
_TEXTS = re.compile(
    r"#[^\n]*|(\"\"\"[\s\S]*?\"\"\"|'''[\s\S]*?''')|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'"
)
_KEY = re.compile(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)")
#: A name in more names than anything is nested in; ``tomllib`` takes the square of their number.
_TOO_DEEP = re.compile(r"[\w\"'-]+(?:[ \t]*\.[ \t]*[\w\"'-]+){200}")
_DOTTED = re.compile(rf"(?:{_KEY.pattern})(?:[ \t]*\.[ \t]*(?:{_KEY.pattern}))*")


def of_toml(unit: Unit) -> Value | None:
    """The content of the file; ``None`` for what is no TOML, or is nested too deeply."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if _TOO_DEEP.search(_TEXTS.sub('""', unit.text)):
        return None
    try:
        found = tomllib.loads(unit.text)
        return _value(found, (), unit, dict(_lines(unit)))
    except (ValueError, RecursionError):  # a number of too many digits is the former
        return None


def _lines(unit: Unit) -> Iterator[tuple[tuple[str, ...], Span]]:
    """The line in which each key stands, by the names above it."""
    table: tuple[str, ...] = ()
    start = 0
    for line in _TEXTS.sub(_without_lines, unit.text).splitlines(keepends=True):
        step()
        end = start + len(line.rstrip("\r\n"))
        if header := _TABLE.fullmatch(line.rstrip("\r\n")):
            table = _keys(header[1])
        elif (entry := _ENTRY.match(line)) and _DOTTED.fullmatch(entry[1].rstrip()):
            behind = line[entry.end() :].lstrip()
            begin = min(start + len(line) - len(behind), end)
            yield (*table, *_keys(entry[1])), Span(unit, begin, end)
        start += len(line)


def _without_lines(found: re.Match[str]) -> str:
    """A text of several lines as one that begins no entry."""
    return re.sub(r"[^\n]", "_", found[0]) if found[1] else found[0]


def _keys(text: str) -> tuple[str, ...]:
    return tuple(next(filter(None, one.groups()), "") for one in _KEY.finditer(text))


def _value(
    found: Any, path: tuple[str, ...], unit: Unit, lines: dict[tuple[str, ...], Span]
) -> Value:
    step()
    span = lines.get(path)
    if isinstance(found, dict):
        inner = {name: _value(one, (*path, name), unit, lines) for name, one in found.items()}
        known = {name: one.span for name, one in inner.items() if one.span is not None}
        return Mapping(inner, span, spans={name: (one, one) for name, one in known.items()})
    if isinstance(found, list):
        return Items([_value(one, path, unit, lines) for one in found], "list", span)
    if isinstance(found, (str, int, float, bool)):
        return Known(found, span)
    place = span.place if span is not None else unit.place_at(0)
    return Unknown(str(found), place, "", span)  # a date
