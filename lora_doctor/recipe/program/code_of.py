"""The definition of a function of a program as ``ast`` has it, by itself."""

from __future__ import annotations

import ast
import textwrap

from lora_doctor.static.program.values import Function

Code = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def code_of(function: Function) -> Code | None:
    """The definition; ``None`` where its text alone is no Python: a cell with a magic in it, or a
    lambda that is cut out of a longer line."""
    return parsed_code(text_of_code(function))


def text_of_code(function: Function) -> str:
    """Its text, from the first column on: lines count from that of the definition."""
    return textwrap.dedent(function.unit.span(function.node).text).strip()


def parsed_code(text: str) -> Code | None:
    """The definition in a text of :func:`text_of_code`; ``None`` as :func:`code_of`."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    found = (one for one in ast.walk(tree) if isinstance(one, Code))
    return next(found, None)
