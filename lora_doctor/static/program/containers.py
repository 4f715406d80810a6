"""Calls that make or change a list, a set or a dictionary of the program, as far as it says what
with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

from lora_doctor.static.program.values import (
    LONGEST,
    Call,
    Items,
    Known,
    Mapping,
    NotPlainError,
    Unknown,
    Value,
    constant,
    same,
)

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context

#: A model has no more layers.
_LONGEST_RANGE = 10_000
#: Methods that change what they are called on.
_CHANGING = frozenset(
    ["append", "add", "extend", "update", "remove", "discard", "pop", "insert", "clear", "sort",
     "reverse", "setdefault", "difference_update", "intersection_update"]
)  # fmt: skip
_LISTS = ("builtins.list", "builtins.tuple", "builtins.set", "builtins.sorted")
_SEQUENCES = ("builtins.range", "builtins.enumerate", "builtins.zip", "itertools.product")


def of_container(follower: Context, call: Call) -> Value | None:
    """What a method of a list, set or dictionary returns, once it has changed it; ``None`` where it
    is none of these."""
    receiver = call.receiver
    if not isinstance(receiver, (Items, Mapping)) or call.node is None:
        return None
    first = call.value("", 0)
    if isinstance(receiver, Mapping) and (follower.unsure or follower.repeated):
        changed = _keys_changed(call, receiver, first)
        if changed is not None:  # no other entry is in doubt
            receiver.take(Mapping(dict.fromkeys(changed, follower.unknown(call.node))))
            return follower.unknown(call.node)
    if call.method in _CHANGING and follower.doubted(receiver, call.node):
        return Known(None)
    if isinstance(receiver, Mapping):
        return _of_mapping(follower, call, receiver, first)
    return _of_items(follower, call, receiver, first)


def _keys_changed(call: Call, receiver: Mapping, first: Value | None) -> list[str] | None:
    """The entries that a method of a dictionary sets or takes out; ``None`` where it changes none,
    or it is not known which."""
    if call.method in ("pop", "setdefault") and isinstance(first, Known):
        key = str(first.value)
        return [key] if call.method == "setdefault" or key in receiver.entries else []
    if call.method != "update" or call.open is not None:
        return None
    if first is not None and not (isinstance(first, Mapping) and first.open is None):
        return None
    return [*(first.entries if isinstance(first, Mapping) else ()), *call.keywords]


def _of_items(follower: Context, call: Call, receiver: Items, first: Value | None) -> Value | None:
    items = receiver.items
    if call.method == "copy":
        return Items(list(items), receiver.kind, gaps=list(receiver.gaps))
    if call.method in ("append", "add") and first is not None:
        items.append(first)
    elif call.method in ("extend", "update") and _fits(first, receiver):
        items.extend(first.items)
        receiver.gaps += first.gaps
    elif call.method in ("remove", "discard") and first is not None and _has(receiver, first):
        items.remove(next(item for item in items if same(item, first)))
    elif call.method in _CHANGING and call.node is not None:
        receiver.gaps.append(follower.unknown(call.node))
        return None
    else:
        return None
    return Known(None)


def _fits(more: Value | None, receiver: Items) -> TypeGuard[Items]:
    return isinstance(more, Items) and len(receiver.items) + len(more.items) <= LONGEST


def _has(receiver: Items, value: Value) -> bool:
    return any(same(item, value) for item in receiver.items)


def _of_mapping(
    follower: Context, call: Call, receiver: Mapping, first: Value | None
) -> Value | None:
    if call.method == "update":
        if isinstance(first, Mapping):
            receiver.take(first)
        elif first is not None:
            receiver.lose(_gap(follower, call, first))
        if call.open is not None:
            receiver.lose(call.open)
        receiver.take(_of_keywords(call))
        return Known(None)
    if call.method in ("get", "pop", "setdefault") and isinstance(first, Known):
        return _entry(call, receiver, str(first.value))
    if call.method == "copy":
        copied = Mapping({})
        copied.take(receiver)
        return copied
    if call.method in ("items", "keys", "values") and receiver.open is None:
        keys: list[Value] = [Known(key) for key in receiver.entries]
        values = list(receiver.entries.values())
        if call.method == "items":
            return Items([Items(list(pair), "tuple") for pair in zip(keys, values, strict=True)])
        return Items(keys if call.method == "keys" else values)
    if call.method in _CHANGING:
        receiver.lose(_gap(follower, call, first))
    return None


def _gap(follower: Context, call: Call, value: Value | None) -> Unknown:
    """What is not known of a call that changes a dictionary."""
    if isinstance(value, Unknown) or call.node is None:
        return value if isinstance(value, Unknown) else Unknown(call.method, call.place)
    return follower.unknown(call.node)


def _entry(call: Call, receiver: Mapping, key: str) -> Value:
    default = receiver.open or call.value("default", 1) or Known(None)
    found = receiver.entries.get(key, default)
    if call.method == "pop":
        receiver.entries.pop(key, None)
    elif call.method == "setdefault":
        receiver.entries[key] = found
    return found


def made_container(follower: Context, call: Call) -> Value | None:
    """What ``list``, ``dict``, ``range`` and the like make; ``None`` for other calls, and where the
    text does not say."""
    first = call.value("", 0)
    if call.name == "builtins.dict":
        return _made_dict(call, first)
    if call.name in _LISTS and not (call.name == "builtins.sorted" and call.keywords):
        kind = call.method.replace("sorted", "list")
        if first is None:
            return Items([], kind)
        if isinstance(first, Items):
            items, gaps = list(first.items), list(first.gaps)
            return Items(items, kind, first.span, first.via, gaps, first.joined)
        return Items([Known(key) for key in first.entries], kind, gaps=list(first.gaps)) if (
            isinstance(first, Mapping)
        ) else None  # fmt: skip
    return _sequence(call) if call.name in _SEQUENCES else None


def _made_dict(call: Call, first: Value | None) -> Mapping:
    made = Mapping({}, call.span, gaps=[call.open] if call.open else [])
    if isinstance(first, Mapping):
        made.take(first)
    elif isinstance(first, Unknown):
        made.gaps.append(first)
    made.take(_of_keywords(call))
    return made


def _of_keywords(call: Call) -> Mapping:
    """The arguments that a call names."""
    spans = {name: (one.span, one.whole) for name, one in call.keywords.items()}
    return Mapping({name: one.value for name, one in call.keywords.items()}, spans=spans)


def _sequence(call: Call) -> Value | None:
    """``range``, ``enumerate``, ``zip`` and ``itertools.product`` of what is known."""
    given = [item.value for item in call.positional]
    if call.keywords or call.open or not given:
        return None
    if call.method == "range":
        try:
            numbers = range(*(constant(item) for item in given))
        except (NotPlainError, TypeError, ValueError):
            return None
        return Items([Known(one) for one in numbers]) if len(numbers) <= _LONGEST_RANGE else None
    lists = [item.items for item in given if isinstance(item, Items) and item.open is None]
    if len(lists) < len(given) or math.prod(map(len, lists)) > _LONGEST_RANGE:
        return None
    if call.method == "enumerate":
        return _tuples([Known(number), item] for number, item in enumerate(lists[0]))
    return _tuples(zip(*lists, strict=False) if call.method == "zip" else itertools.product(*lists))


def _tuples(rows: Iterable[Iterable[Value]]) -> Items:
    return Items([Items(list(row), "tuple") for row in rows])
