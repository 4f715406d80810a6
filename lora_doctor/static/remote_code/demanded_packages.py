"""The packages that transformers demands before it loads a file of remote code.

Before the file is imported, transformers looks for every package in it, by `get_imports`: also for
what is only imported in a function, and in its older form for what stands in a docstring. So the
demand is not what the code needs. Both forms are followed here; which one is installed is read
from its source. Nothing is imported.
"""

from __future__ import annotations

import ast
import functools
import re
from typing import Literal

from lora_doctor.static.installed.environment import package_folder
from lora_doctor.static.installed.installed_names import importable

Form = Literal["tree", "text"]


def demanded_packages(text: str) -> dict[str, int]:
    """Top-level packages that the installed transformers demands of a file, to their first line.

    Empty when transformers is missing. A file that is no Python demands nothing.
    """
    form = _installed_form()
    if form is None:
        return {}
    return _by_text(text) if form == "text" else _by_tree(text)


@functools.cache
def _installed_form() -> Form | None:
    folder = package_folder("transformers")
    if folder is None:
        return None
    try:
        source = (folder / "dynamic_module_utils.py").read_text("utf-8")
    except OSError:
        return None
    body = source.partition("def get_imports(")[2].partition("\ndef ")[0]
    return "tree" if "ast.parse" in body else "text"


def _by_tree(text: str) -> dict[str, int]:
    """All but what stands under `try`, or under a condition that asks `is_…_available()`."""
    found: dict[str, int] = {}

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.Try) or (isinstance(node, ast.If) and _asks_library(node.test)):
            return
        if isinstance(node, ast.Import):
            for item in node.names:
                found.setdefault(item.name.split(".")[0], node.lineno)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.setdefault(node.module.split(".")[0], node.lineno)
        for child in ast.iter_child_nodes(node):
            look(child)

    try:
        look(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError):
        return {}
    return found


def _asks_library(test: ast.expr) -> bool:
    for node in ast.walk(test):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name.startswith("is_flash_attn") and name.endswith("available"):
                return True
            if importable("transformers.utils.import_utils", name) == "there":
                return True
    return False


def _by_text(text: str) -> dict[str, int]:
    """Lines that look like an import, outside of what looks like `try:` to `except …:`."""
    # Line breaks are kept, so that the lines can be told.
    kept = re.sub(
        r"\s*try\s*:\s*.*?\s*except\s*.*?:",
        lambda found: "\n" * found[0].count("\n"),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    found: dict[str, int] = {}
    for pattern in (r"^\s*import\s+(\S+)\s*$", r"^\s*from\s+(\S+)\s+import"):
        for match in re.finditer(pattern, kept, re.MULTILINE):
            if not match[1].startswith("."):
                line = kept.count("\n", 0, match.start(1)) + 1
                found.setdefault(match[1].split(".")[0], line)
    return found
