"""Calls for whose failure a program is ready."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from lora_doctor.static.program.values import Call
from lora_doctor.static.python_source import FUNCTIONS, parse_python, walk

_SCOPES = (*FUNCTIONS, ast.Lambda)


def is_caught(call: Call, error: type[BaseException]) -> bool:
    """Whether the program goes on if this call raises such an ``error``: a ``try`` in the same
    function catches it, and raises nothing itself. One around the whole program, which reports a
    failure and ends, stands in another function."""
    unit = call.span.unit
    line = unit.text.count("\n", 0, call.span.start) + 1
    errors = {one.__name__ for one in error.__mro__}
    return any(
        _goes_on(node, errors) and any(_stands_in(one, line) for one in node.body)
        for node in walk(parse_python(unit.python, unit.name))
        if isinstance(node, ast.Try)
    )


def _stands_in(statement: ast.stmt, line: int) -> bool:
    """Whether a statement has this line, outside of functions that it defines."""
    if not statement.lineno <= line <= (statement.end_lineno or 0):
        return False
    inside = (node for node in ast.walk(statement) if isinstance(node, _SCOPES))
    return not any(node.lineno <= line <= (node.end_lineno or 0) for node in inside)


def _goes_on(node: ast.Try, errors: set[str]) -> bool:
    for handler in node.handlers:
        if handler.type is None or any(name in errors for name in _names(handler.type)):
            return not any(isinstance(one, ast.Raise) for one in ast.walk(handler))
    return False


def _names(caught: ast.expr) -> Iterator[str]:
    """``OSError`` of ``except (OSError, builtins.ValueError)``, and the other one."""
    for one in caught.elts if isinstance(caught, ast.Tuple) else (caught,):
        if isinstance(one, (ast.Name, ast.Attribute)):
            yield one.id if isinstance(one, ast.Name) else one.attr
