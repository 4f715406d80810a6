"""The values of an argument that trainers know, where the class of the arguments takes any text.

A trainer goes through them with ``if loss_type == "a": ... elif loss_type in ["b", "c"]: ... else:
raise``, long after the class of the arguments has taken the text. That is read off its source.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_doctor.limits import INSTALLED_FILE_BYTES


@functools.cache
def handled_values(packages: Sequence[str], name: str) -> tuple[str, ...]:
    """The values of the argument ``name`` that the trainers in these packages go through before
    they raise; empty where none does, or where some of them cannot be read off."""
    found: list[str] = []
    for package in packages:
        for file in _trainers(package):
            values = _in_file(file, name)
            if values is None:
                return ()
            found += values
    return tuple(dict.fromkeys(found))


def _trainers(package: str) -> list[Path]:
    """The files of the trainers in a package; nothing is imported but the package around it."""
    top, *rest = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    folders = (spec.submodule_search_locations or []) if spec else []
    return [
        file for folder in folders for file in sorted(Path(folder, *rest).rglob("*_trainer.py"))
    ]


def _in_file(file: Path, name: str) -> list[str] | None:
    """The values in this file; ``None`` where a chain that ends in an error has others."""
    if file.stat().st_size > INSTALLED_FILE_BYTES:
        return []
    text = file.read_text("utf-8", "replace")
    if not re.search(rf"\b{re.escape(name)} (?:==|in|not in) ", text):
        return []
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    found: list[str] = []
    for node in ast.walk(tree):
        chain = list(_chain(node)) if isinstance(node, ast.If) else []
        if not chain or not any(_is_about(test, name) for test in chain) or not _raises(chain[-1]):
            continue
        for test in chain:
            values = _values(test, name, constants)
            if values is None:
                return None
            found += values
    return found


def _chain(node: ast.If) -> Iterator[ast.If]:
    """The ``if`` and its ``elif``."""
    yield node
    if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
        yield from _chain(node.orelse[0])


def _raises(last: ast.If) -> bool:
    """Whether what none of the conditions holds for, or what is in none of the values, is an
    error."""
    refused = isinstance(last.test, ast.Compare) and isinstance(last.test.ops[0], ast.NotIn)
    block = last.body if refused else last.orelse
    return bool(block) and isinstance(block[-1], ast.Raise)


def _is_about(part: ast.If, name: str) -> bool:
    test = part.test
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return False
    left = test.left
    return (left.attr if isinstance(left, ast.Attribute) else getattr(left, "id", "")) == name


def _values(part: ast.If, name: str, constants: dict[str, ast.expr]) -> list[str] | None:
    """The values with which this condition holds, or does not where it is ``not in``."""
    if not _is_about(part, name) or not isinstance(part.test, ast.Compare):
        return None
    given = part.test.comparators[0]
    if isinstance(given, ast.Name):
        given = constants.get(given.id, given)
    try:
        value = ast.literal_eval(given)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return None
    several = isinstance(part.test.ops[0], (ast.In, ast.NotIn))
    if not several and not isinstance(part.test.ops[0], ast.Eq):
        return None
    values = value if several and isinstance(value, (list, tuple, set)) else [value]
    return [one for one in values if isinstance(one, str)]
