"""The values that an argument of a framework can have, where its annotation lists them all."""

from __future__ import annotations

import ast
from collections.abc import Callable

#: Finds the class that a name stands for in the module of the annotation.
FindClass = Callable[[ast.expr], "ast.ClassDef | None"]


def choices_of(annotation: ast.expr, find_class: FindClass) -> tuple[str, ...]:
    """The strings that ``Literal`` and enumerations allow; ``^...`` is a pattern. Empty where any
    value may be given, or one that is no string."""
    found = _choices(annotation, find_class)
    return tuple(dict.fromkeys(found)) if found else ()


def _choices(node: ast.expr, find_class: FindClass) -> list[str] | None:
    """``None``: open."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):  # an annotation in quotes
            return _choices(ast.parse(node.value, mode="eval").body, find_class)
        return [] if node.value is None else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _all([node.left, node.right], find_class)
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        name = ast.unparse(node.value).rpartition(".")[2]
        if name == "Literal":
            return _strings(inner)
        if name in ("Optional", "Union"):
            return _all(inner, find_class)
        return _pattern(inner) if name == "Annotated" else None
    named = find_class(node) if isinstance(node, (ast.Name, ast.Attribute)) else None
    return _members(named) if named is not None else None


def _all(parts: list[ast.expr], find_class: FindClass) -> list[str] | None:
    found: list[str] = []
    for part in parts:
        inner = _choices(part, find_class)
        if inner is None:
            return None
        found += inner
    return found


def _strings(parts: list[ast.expr]) -> list[str] | None:
    values = [part.value for part in parts if isinstance(part, ast.Constant)]
    if len(values) != len(parts):
        return None
    return [str(value) for value in values if value is not None]


def _pattern(parts: list[ast.expr]) -> list[str] | None:
    """Of ``Annotated[str, StringConstraints(pattern="^...")]``."""
    for part in parts[1:]:
        for word in part.keywords if isinstance(part, ast.Call) else ():
            if word.arg == "pattern" and isinstance(word.value, ast.Constant):
                pattern = str(word.value.value)
                return [pattern] if pattern.startswith("^") else None
    return None


def _members(node: ast.ClassDef) -> list[str] | None:
    """The values of an enumeration of strings."""
    if not any("Enum" in ast.unparse(base) for base in node.bases):
        return None
    values = [
        part.value.value
        for part in node.body
        if isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant)
    ]
    return [str(value) for value in values] if values else None
