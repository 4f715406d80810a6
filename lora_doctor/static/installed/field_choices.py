"""The values that an argument of a framework can have, where its class lists them all: in the
annotation, for the parser of the command line, or by the enumeration that it makes of the text."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

#: Finds the class that a name stands for in the module of the annotation.
FindClass = Callable[[ast.expr], "ast.ClassDef | None"]


def choices_of(annotation: ast.expr, find_class: FindClass) -> tuple[str, ...]:
    """The strings that ``Literal`` and enumerations allow; ``^...`` is a pattern. Empty where any
    value may be given, or one that is no string."""
    found = _choices(annotation, find_class)
    return tuple(dict.fromkeys(found)) if found else ()


def choices_of_fields(
    node: ast.ClassDef, find_class: FindClass
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each field of a dataclass and the values that it can have (empty: any)."""
    made = dict(_made_of_text(node, find_class))
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            name = part.target.id
            found = choices_of(part.annotation, find_class) or _for_the_parser(part.value)
            yield name, made.get(name, ()) or found


def kinds_of_fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Each field that holds a number or a switch and nothing else: ``int``, ``float``, ``bool``."""
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            words = set(re.findall(r"\w+", ast.unparse(part.annotation)))
            kinds = words - {"None", "Optional", "Union"}
            if kinds in ({"int"}, {"float"}, {"int", "float"}, {"bool"}):
                yield part.target.id, "float" if "float" in kinds else kinds.pop()


def _for_the_parser(value: ast.expr | None) -> tuple[str, ...]:
    """``field(metadata={"choices": [...]})``, which ``HfArgumentParser`` hands to ``argparse``."""
    given = value.keywords if isinstance(value, ast.Call) else ()
    for word in given:
        if word.arg == "metadata" and isinstance(word.value, ast.Dict):
            for key, listed in zip(word.value.keys, word.value.values, strict=True):
                known = isinstance(key, ast.Constant) and key.value == "choices"
                if known and isinstance(listed, (ast.List, ast.Tuple)):
                    return tuple(_strings(listed.elts) or ())
    return ()


def _made_of_text(
    node: ast.ClassDef, find_class: FindClass
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The fields of which ``__post_init__`` makes the member of an enumeration, whatever the others
    are: ``self.strategy = Strategy(self.strategy)``."""
    methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
    for line in (one for part in methods if part.name == "__post_init__" for one in part.body):
        if not isinstance(line, ast.Assign) or not isinstance(line.value, ast.Call):
            continue
        target, made = line.targets[0], line.value
        same = len(made.args) == 1 and ast.unparse(made.args[0]) == ast.unparse(target)
        found = find_class(made.func) if same and isinstance(target, ast.Attribute) else None
        members = _members(found) if found is not None else None
        if members and isinstance(target, ast.Attribute):
            yield target.attr, tuple(members)


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
