"""The names in which a regular expression for ``target_modules`` can end.

``.*self_attn.(q|k|v|o)_proj`` ends in ``q_proj``, ``k_proj``, ``v_proj`` or ``o_proj``: each is a
wish, as it would be in a list, and PEFT does not say which of them match nothing.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from typing import Any

#: An end of the expression, and whether it is all of the module's name: a dot stands before it.
_End = tuple[str, bool]
_MOST = 100
_SKIPPED = ("AT", "ASSERT", "ASSERT_NOT")


class _EndlessError(Exception):
    """The names cannot be listed."""


def expression_ends(expression: str) -> list[str]:
    """The names, in the order in which they are written; empty where they cannot be listed (a
    ``.*`` or a class of characters at the end), or the expression is none."""
    # The parser of `re` is public up to 3.10 by another name, and private since.
    parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
    try:
        ends = _ends(list(parser.parse(expression)))
    except (_EndlessError, re.error, RecursionError, OverflowError):
        return []
    return list(dict.fromkeys(text for text, _ in ends if text))


def _ends(nodes: Sequence[Any]) -> list[_End]:
    """What a sequence can end in, read from its end as far as the last dot."""
    found: list[_End] = [("", False)]
    for node in reversed(nodes):
        if all(whole for _, whole in found):
            break
        before = _node(node)
        found = [
            (text if whole else front + text, whole or closed)
            for front, closed in before
            for text, whole in found
        ]
        found = list(dict.fromkeys(found))
        if len(found) > _MOST:
            raise _EndlessError
    return found


def _node(node: Any) -> list[_End]:
    kind, value = str(node[0]), node[1]
    if kind == "LITERAL":
        return [("", True)] if chr(value) == "." else [(chr(value), False)]
    if kind == "ANY":  # a dot that nobody escaped stands for one, nearly always
        return [("", True)]
    if kind in _SKIPPED:
        return [("", False)]
    if kind == "IN" and all(str(item[0]) == "LITERAL" for item in value):
        return [(chr(item[1]), False) for item in value]
    if kind == "SUBPATTERN":
        return _ends(list(value[-1]))
    if kind == "BRANCH":
        return [end for branch in value[1] for end in _ends(list(branch))]
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, item = value
        if (int(least), int(most)) == (0, 1):
            return [*_ends(list(item)), ("", False)]
        if [str(one[0]) for one in item] == ["ANY"]:
            return [("", True)]
    raise _EndlessError
