"""How the installed Trainer calls what it is handed, functions and callbacks: read, never
imported."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.static.installed.environment import installed_tree, package_folder
from lora_doctor.static.python_source import walk

#: The class of transformers that callbacks inherit, and who calls their methods.
CALLBACK = "TrainerCallback"
_CALLS_THEM = "call_event"
#: Where a Trainer of transformers calls functions that it was given.
_TRAINER_FILES = ("trainer.py", "trainer_utils.py")


@dataclass(frozen=True)
class HookCall:
    """A call of something that the Trainer was handed."""

    #: The argument by which it was handed; empty for a callback's method.
    name: str
    #: How many arguments it is given by position, and which by name.
    positional: int
    keywords: tuple[str, ...]
    #: File from the package on, and line.
    place: str


@functools.cache
def hook_calls(argument: str) -> tuple[HookCall, ...]:
    """The calls of a function that the Trainer was given by this argument; none where it is called
    through something else."""
    return tuple(
        call
        for file in _TRAINER_FILES
        for call in _calls(_tree(file), file)
        if call.name == argument
    )


@functools.cache
def callback_events() -> tuple[str, ...]:
    """The methods that the installed class of callbacks has."""
    return tuple(
        method.name
        for node in walk(_tree("trainer_callback.py"))
        if isinstance(node, ast.ClassDef) and node.name == CALLBACK
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name.startswith("on_")
    )


@functools.cache
def callback_call() -> HookCall | None:
    """How each method of a callback is called: ``getattr(callback, event)(args, …, model=…)``."""
    for function in walk(_tree("trainer_callback.py")):
        if not isinstance(function, ast.FunctionDef) or function.name != _CALLS_THEM:
            continue
        for node in walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Call):
                return _call(node, "", "trainer_callback.py")
    return None


def _tree(file: str) -> ast.Module:
    """A file of the installed transformers; empty where it is missing."""
    folder = package_folder("transformers")
    tree = installed_tree(folder / file) if folder is not None else None
    return tree or ast.Module([], [])


def _calls(where: ast.AST, file: str) -> Iterator[HookCall]:
    for node in walk(where):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if getattr(node.func.value, "id", "") != "self":
            continue
        found = _call(node, node.func.attr, file)
        if found is not None:
            yield found


def _call(node: ast.Call, name: str, file: str) -> HookCall | None:
    """``None`` where arguments are unpacked by position."""
    if any(isinstance(one, ast.Starred) for one in node.args):
        return None
    names = tuple(one.arg for one in node.keywords if one.arg is not None)
    return HookCall(name, len(node.args), names, f"transformers/{file}:{node.lineno}")
