"""Which case of a ``match`` statement a value takes, as far as the text says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import libcst as cst

from lora_doctor.static.program.values import Known, Value

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context


def matches(follower: Context, case: cst.MatchCase, subject: Value) -> bool | None:
    """Whether the case is taken; ``None`` where that is not known. A name that the pattern binds is
    bound."""
    found = _pattern(follower, case.pattern, subject)
    return found if case.guard is None or found is False else None


def _pattern(follower: Context, node: cst.MatchPattern, subject: Value) -> bool | None:
    if isinstance(node, cst.MatchAs):
        found = True if node.pattern is None else _pattern(follower, node.pattern, subject)
        if node.name is not None and found is not False:
            follower.bind(node.name, subject)
        return found
    if isinstance(node, cst.MatchOr):
        parts = [_pattern(follower, part.pattern, subject) for part in node.patterns]
        if any(parts):
            return True
        return None if None in parts else False
    if isinstance(node, (cst.MatchValue, cst.MatchSingleton)):
        wanted = follower.value(node.value)
        if isinstance(subject, Known) and isinstance(wanted, Known):
            return bool(subject.value == wanted.value)
    return None
