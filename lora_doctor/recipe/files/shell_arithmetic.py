"""Arithmetic of a shell script over whole numbers that are known: ``$((16 / GPUS))``, ``$(expr 16 /
$GPUS)``."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping

_NAME = re.compile(r"\$?\{?([A-Za-z_]\w*)\}?")
_EXPR = re.compile(r"\(\s*expr\s+(?P<inside>[^|;&]*)\)")
_PLAIN = re.compile(r"[\d\s+\-*/%()]+")
_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
#: No setting of a training is written longer.
_LONGEST = 200


def arithmetic(text: str, variables: Mapping[str, str | None]) -> tuple[str | None, list[str]]:
    """What a substitution from its first bracket to its last gives, ``None`` where only the shell
    knows, and the variables in it."""
    if text.startswith("((") and text.endswith("))"):
        inside = text[2:-2]
    elif found := _EXPR.fullmatch(text):
        inside = found["inside"].replace("\\*", "*")
    else:
        return None, []
    names = [match[1] for match in _NAME.finditer(inside)]
    filled = _NAME.sub(lambda match: variables.get(match[1]) or "?", inside)
    if len(filled) > _LONGEST or "**" in filled or not _PLAIN.fullmatch(filled):
        return None, names
    try:
        tree = ast.parse(filled.strip().replace("/", "//"), mode="eval")
        return str(_value(tree.body)), names
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None, names


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise ValueError
