"""The PEFT that the installed transformers asks for, and which of its own methods ask.

Read from the source of transformers' mixin (``model.add_adapter`` and its like), never imported.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass

from lora_doctor.static.installed.environment import installed_text, package_folder

_FILE = ("integrations", "peft.py")
_MINIMUM = "MIN_PEFT_VERSION"
_CHECK = "check_peft_version"


@dataclass(frozen=True)
class PeftMinimum:
    """``version``: the least one; ``methods``: those that raise for an older one, before anything
    else. ``get_peft_model`` asks for nothing."""

    version: str
    methods: frozenset[str]


@functools.cache
def peft_minimum() -> PeftMinimum | None:
    """What the installed transformers asks for; ``None`` where it says nothing that can be read."""
    folder = package_folder("transformers")
    text = installed_text(folder.joinpath(*_FILE)) if folder is not None else ""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # cut, or not Python of this version
        return None
    versions = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        and any(isinstance(name, ast.Name) and name.id == _MINIMUM for name in node.targets)
    ]
    methods = frozenset(
        function.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for function in node.body
        if isinstance(function, ast.FunctionDef) and _asks(function)
    )
    return PeftMinimum(versions[0], methods) if versions and methods else None


def _asks(function: ast.FunctionDef) -> bool:
    """Whether a method compares the version."""
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == _CHECK
        for node in ast.walk(function)
    )
