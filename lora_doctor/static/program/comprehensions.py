"""Lists and dictionaries that a comprehension makes of values that the text says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import libcst as cst

from lora_doctor.limits import step
from lora_doctor.static.program.truth import truth
from lora_doctor.static.program.values import (
    LONGEST,
    Items,
    Known,
    Mapping,
    Scope,
    Unknown,
    Value,
)

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context

#: Rounds of a comprehension that are followed; a model has no more layers.
_MOST_ROUNDS = 2_000


class _NotKnownError(Exception):
    """The text does not say over what, or for which of it, something is made."""


def listed(follower: Context, node: cst.ListComp | cst.SetComp | cst.GeneratorExp) -> Value | None:
    """The items; ``None`` where the text does not say them."""
    kind = "set" if isinstance(node, cst.SetComp) else "list"
    try:
        items = [follower.value(node.elt) for _ in _rounds(follower, node.for_in, [0])]
    except _NotKnownError:
        return None
    unknown = next((item for item in items if isinstance(item, Unknown)), None)
    return unknown or Items(items, kind)


def mapped(follower: Context, node: cst.DictComp) -> Value | None:
    """The entries; ``None`` where the text does not say them."""
    found = Mapping({})
    try:
        for _ in _rounds(follower, node.for_in, [0]):
            key = follower.value(node.key)
            if not isinstance(key, Known):
                return None
            found.entries[str(key.value)] = follower.value(node.value)
    except _NotKnownError:
        return None
    return found


def _rounds(follower: Context, node: cst.CompFor, made: list[int]) -> Iterator[None]:
    """Each round with its names bound, in a scope of its own."""
    values = follower.value(node.iter)
    if not isinstance(values, Items) or values.open or len(values.items) > LONGEST:
        raise _NotKnownError
    kept = follower.scope
    for item in values.items:
        step()
        follower.scope = Scope({}, kept)
        try:
            follower.bind(node.target, item)
            if not all(_holds(follower, condition.test) for condition in node.ifs):
                continue
            if node.inner_for_in is not None:
                yield from _rounds(follower, node.inner_for_in, made)
                continue
            made[0] += 1
            if made[0] > _MOST_ROUNDS:
                raise _NotKnownError
            yield
        finally:
            follower.scope = kept


def _holds(follower: Context, test: cst.BaseExpression) -> bool:
    known = truth(follower.value(test))
    if known is None:
        raise _NotKnownError
    return known
