"""Small changes of a call, as pieces of text that are replaced: an argument set, added, renamed or
taken out, in the style of what stands around it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_doctor.static.program.units import Span, Unit
from lora_doctor.static.program.values import Argument, Call, Items

if TYPE_CHECKING:  # half as long to import as all else that depth static needs
    import libcst as cst

Splice = tuple[Span, str]
_EQUAL = re.compile(r"[ \t]*=[ \t]*")


def replaced(span: Span, text: str) -> Splice:
    return span, text


def renamed(argument: Argument, name: str) -> Splice:
    """The keyword under another name."""
    start = argument.whole.start
    return Span(argument.whole.unit, start, start + len(argument.name)), name


def removed(call: Call, argument: Argument) -> Splice | None:
    """The argument taken out of the call, with the comma and the line break that go with it."""
    spans = _spans(call)
    place = next((n for n, span in enumerate(spans) if span.start == argument.whole.start), None)
    if place is None:
        return None
    unit = argument.whole.unit
    if place + 1 < len(spans):
        return Span(unit, spans[place].start, spans[place + 1].start), ""
    if place > 0:
        return Span(unit, spans[place - 1].end, spans[place].end), ""
    return spans[place], ""


def rearranged(call: Call, gone: Sequence[Argument], new: Mapping[str, str]) -> list[Splice]:
    """The call without some of its arguments, and with others at the end."""
    unit, spans = call.span.unit, _spans(call)
    starts = {argument.whole.start for argument in gone}
    kept = [span for span in spans if span.start not in starts]
    written = [f"{name}{_equal(call)}{value}" for name, value in new.items()]
    if not kept:
        start, end = (spans[0].start, spans[-1].end) if spans else (call.span.end - 1,) * 2
        return [(Span(unit, start, end), ", ".join(written))]
    between = _between(unit, kept[-1].start)
    last = spans.index(kept[-1])
    if written and last + 1 < len(spans):  # in the place of those at the end
        behind = f",{between}".join(written)
        changes = [(Span(unit, spans[last + 1].start, spans[-1].end), behind)]
    else:
        behind = "".join(f",{between}{text}" for text in written)
        changes = [(Span(unit, kept[-1].end, spans[-1].end), behind)]
    for number, span in enumerate(spans[:last]):
        if span.start in starts:
            changes.append((Span(unit, span.start, spans[number + 1].start), ""))
    return changes


def added(call: Call, name: str, value: str) -> Splice | None:
    """A new keyword argument: before the last one where that has a name, else behind it."""
    assert call.node is not None
    unit = call.span.unit
    written = f"{name}{_equal(call)}{value}"
    if not call.node.args:
        end = call.span.end - 1
        return Span(unit, end, end), written
    last, span = call.node.args[-1], _spans(call)[-1]
    between = _between(unit, span.start)
    if last.keyword is not None or last.star == "**":
        return Span(unit, span.start, span.start), f"{written},{between}"
    return Span(unit, span.end, span.end), f",{between}{written}"


def _spans(call: Call) -> list[Span]:
    assert call.node is not None
    return [_of_argument(call.span.unit, argument) for argument in call.node.args]


def _of_argument(unit: Unit, node: cst.Arg) -> Span:
    found = unit.span(node)
    return Span(unit, found.start, unit.span(node.value).end) if node.comma else found


def _between(unit: Unit, start: int) -> str:
    """What stands between two arguments: a line break and the indent, or a space."""
    begin, _ = unit.line_bounds(start)
    lead = unit.text[begin:start]
    return f"{unit.newline}{lead}" if not lead.strip() else " "


def _equal(call: Call) -> str:
    """The spaces around ``=`` that the call's other arguments have."""
    for argument in reversed(list(call.keywords.values())):
        if argument.unpacked:
            continue
        text = argument.whole.text[len(argument.name) :]
        found = _EQUAL.match(text)
        if found:
            return found[0]
    return "="


def literal(value: Any, like: str = "") -> str:
    """A plain value as Python, its texts in the quotes that ``like`` has."""
    quote = "'" if _prefers_single(like) else '"'
    if isinstance(value, str):
        text = repr(value)
        if quote == '"' and text[0] == "'" and '"' not in value and "\\'" not in text:
            return f'"{text[1:-1]}"'
        return text
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(literal(item, like) for item in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{literal(key, like)}: {literal(one, like)}" for key, one in value.items())
        return "{" + ", ".join(pairs) + "}"
    return repr(value)


def _prefers_single(text: str) -> bool:
    return "'" in text and text.count("'") > text.count('"')


def list_changed(old: Items, values: list[Any]) -> list[Splice] | None:
    """The list with other items: those that stay keep their text, line and comment; ``None`` where
    it is not written out item by item, or its order changes."""
    if old.span is None or not old.items:
        return None
    spans = [item.span for item in old.items]
    if any(span is None or not _inside(span, old.span) for span in spans):
        return None
    names = [getattr(item, "value", None) for item in old.items]
    kept = [name for name in names if name in values]
    if len(set(names)) != len(names) or values[: len(kept)] != kept or not kept:
        return None
    whole: list[Span] = [span for span in spans if span is not None]
    changes: list[Splice] = []
    last = max(n for n, name in enumerate(names) if name in values)
    for number, name in enumerate(names):
        if name in values:
            continue
        unit = whole[number].unit
        if number < last:
            changes.append((Span(unit, whole[number].start, whole[number + 1].start), ""))
        else:
            changes.append((Span(unit, whole[number - 1].end, whole[number].end), ""))
    new = values[len(kept) :]
    if new:
        span = whole[last]
        between = _between(span.unit, span.start) if last else " "
        text = "".join(f",{between}{literal(item, span.text)}" for item in new)
        changes.append((Span(span.unit, span.end, span.end), text))
    return changes


def _inside(inner: Span, outer: Span) -> bool:
    return inner.unit is outer.unit and outer.start <= inner.start and inner.end <= outer.end
