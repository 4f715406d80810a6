"""What an operation that Python does in one go costs, in steps of the budget of plain code: known
before it is done, so that no line of a program's takes longer than its loops may."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lora_doctor.evidence.plain_statements import Budget
from lora_doctor.evidence.plain_values import (
    LONGEST,
    Allowed,
    NotFollowedError,
    is_dictionary,
    is_tensor,
    is_tokenizer,
)

#: Entries or letters that one operation goes through in the time of a step of ours.
_IN_A_STEP = 16
_CONTAINERS = (list, tuple, set, dict)
#: What takes the same time however long its arguments are.
_AT_ONCE = (len, isinstance, range, enumerate, zip, reversed, bool, int, float, abs, round)
_METHODS_AT_ONCE = frozenset({"append", "keys", "values", "items"})
#: Methods that look at each entry of their owner once, and compare none of them.
_OF_OWNER = frozenset({"copy", "reverse", "clear", "insert", "pop", "extend", "update"})
#: Numbers that a library takes as a length, and makes as many entries of; larger ones it refuses.
_LENGTHS = range(LONGEST + 1, 1 << 63)
_WIDE = re.compile(r"\d{5}|[{]")


def is_wide(spec: str) -> bool:
    """Whether a format may make a text that is much longer than what it is given."""
    return len(spec) > 8 or _WIDE.search(spec) is not None


def spend_on_all(budget: Budget, values: Iterable[Any]) -> None:
    """For what goes through these values and all that is in them. A list that is in others twice
    counts twice: text, comparison and hash go through it as often."""
    open_ = list(values)
    while open_:
        one = open_.pop()
        if not isinstance(one, (str, *_CONTAINERS)):
            continue
        inner: list[Any] = []
        if not isinstance(one, str):
            parts = (*one.keys(), *one.values()) if isinstance(one, dict) else one
            inner = [part for part in parts if _is_long(part)]
        budget.spend(len(inner) + len(one) // _IN_A_STEP)
        open_ += inner


def spend_on_entries(budget: Budget, *values: Any) -> None:
    """For what goes through the entries of these values, and not into them."""
    budget.spend(sum(len(one) for one in values if isinstance(one, (str, *_CONTAINERS)))
                 // _IN_A_STEP)  # fmt: skip


def spend_on_key(budget: Budget, key: Any) -> None:
    """For the hash of a key."""
    if isinstance(key, tuple):
        spend_on_all(budget, (key,))


def spend_on_comparison(budget: Budget, left: Any, right: Any) -> None:
    """For ``==`` and ``in``: what is no list itself is compared with entries without a look into
    them."""
    if isinstance(left, _CONTAINERS):
        spend_on_all(budget, (left, right))
    elif isinstance(right, (str, list, tuple)):
        spend_on_entries(budget, right)


def spend_on_format(budget: Budget, fields: int, values: Sequence[Any]) -> None:
    """For a text with so many places, each of which may hold any of these values."""
    before = budget.steps
    spend_on_all(budget, values)
    budget.spend((before - budget.steps) * fields)


def spend_on_call(budget: Budget, called: Any, given: Sequence[Any], named: Any) -> None:
    """For a call of what is no function of the program's.

    Raises:
        NotFollowedError: it would take, or make, more than is left.
    """
    values = (*given, *named.values())
    owner = getattr(called, "__self__", None)
    of_library = isinstance(called, Allowed) or is_tokenizer(called) or is_tokenizer(owner)
    if of_library or is_tensor(owner):
        if any(type(one) is int and one in _LENGTHS for one in values):
            raise NotFollowedError("a long row")
        spend_on_all(budget, values)
    elif isinstance(owner, (str, *_CONTAINERS)):
        _spend_on_method(budget, owner, called.__name__, given, values)
    elif called is sum:
        spend_on_entries(budget, *values)
        lists = [one for one in _listed(given[:1]) if isinstance(one, (list, tuple))]
        budget.spend(len(lists) * sum(map(len, lists)) // 2048)  # each is copied with all before it
    elif not any(called is one for one in _AT_ONCE) and not is_dictionary(owner):
        spend_on_all(budget, values)


def _spend_on_method(
    budget: Budget, owner: Any, name: str, given: Sequence[Any], values: Sequence[Any]
) -> None:
    if isinstance(owner, str):
        spend_on_all(budget, (owner, *values))
        if name == "replace" and len(given) > 1 and all(isinstance(one, str) for one in given[:2]):
            budget.spend(owner.count(given[0]) * len(given[1]) // _IN_A_STEP)
        elif name == "join":
            budget.spend(len(owner) * len(_listed(given[:1])) // _IN_A_STEP)
    elif isinstance(owner, (dict, set)):
        spend_on_entries(budget, *values, *([owner] if name == "copy" else []))
        for one in values:
            spend_on_key(budget, one)
    elif name in _OF_OWNER:
        spend_on_entries(budget, *given, *([owner] if given or name != "pop" else []))
    elif name not in _METHODS_AT_ONCE:
        spend_on_all(budget, (owner, *values))


def _is_long(value: Any) -> bool:
    return isinstance(value, _CONTAINERS) or (isinstance(value, str) and len(value) > 64)


def _listed(given: Sequence[Any]) -> Any:
    return given[0] if given and isinstance(given[0], (list, tuple, str)) else ()
