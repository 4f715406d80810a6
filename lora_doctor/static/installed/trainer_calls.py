"""How the installed Trainer calls its own methods in each training step: read, never imported."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.static.installed.environment import installed_text, package_folder
from lora_doctor.static.python_source import walk

#: The method of the Trainer that runs each step.
STEP = "training_step"


@dataclass(frozen=True)
class OwnCall:
    """A call of one of its own methods."""

    #: The method.
    method: str
    #: How many arguments it is given by position, and which by name.
    positional: int
    keywords: tuple[str, ...]
    #: File from the package on, and line.
    place: str


@functools.cache
def step_calls() -> tuple[OwnCall, ...]:
    """Those of the installed ``Trainer.training_step``; none where transformers is missing."""
    folder = package_folder("transformers")
    text = installed_text(folder / "trainer.py") if folder is not None else ""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ()
    return tuple(
        call
        for node in walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == STEP
        for call in _own_calls(node)
    )


def _own_calls(function: ast.FunctionDef) -> Iterator[OwnCall]:
    for node in walk(function):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if getattr(node.func.value, "id", "") != "self":
            continue
        if any(isinstance(one, ast.Starred) for one in node.args):
            continue
        names = tuple(one.arg for one in node.keywords if one.arg is not None)
        place = f"transformers/trainer.py:{node.lineno}"
        yield OwnCall(node.func.attr, len(node.args), names, place)
