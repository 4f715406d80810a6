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

from lora_doctor.errors import EvidenceError, LimitError
from lora_doctor.limits import step
from lora_doctor.static.installed.environment import installed_text, package_folder
from lora_doctor.static.installed.installed_names import importable
from lora_doctor.static.python_source import parse_python, walk

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
    source = installed_text(folder / "dynamic_module_utils.py")
    if not source:
        return None
    body = source.partition("def get_imports(")[2].partition("\ndef ")[0]
    return "tree" if "ast.parse" in body else "text"


def _by_tree(text: str) -> dict[str, int]:
    """All but what stands under `try`, or under a condition that asks `is_…_available()`."""
    found: dict[str, int] = {}

    def look(node: ast.AST) -> None:
        step()
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
        look(parse_python(text, "the file"))
    except LimitError:
        raise
    except (EvidenceError, RecursionError):
        return {}
    return found


def _asks_library(test: ast.expr) -> bool:
    for node in walk(test):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name.startswith("is_flash_attn") and name.endswith("available"):
                return True
            if importable("transformers.utils.import_utils", name) == "there":
                return True
    return False


def _by_text(text: str) -> dict[str, int]:
    """Lines that look like an import, outside of what looks like `try:` to `except …:`.

    As the library's regular expressions find them, each line looked at once: theirs take minutes
    for a file of blank lines.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(_without_attempts(text).split("\n"), start=1):
        step()
        match = _IMPORT_LINE.match(line)
        name = (match[1] or match[2]) if match else "."
        if not name.startswith("."):
            found.setdefault(name.split(".")[0], number)
    return found


_IMPORT_LINE = re.compile(r"\s*(?:import\s+(\S+)\s*$|from\s+(\S+)\s+import)")
_TRY = re.compile(r"try\s*:")


def _without_attempts(text: str) -> str:
    """The text without what stands from a `try:` to the colon after the next `except`; line breaks
    are kept, so that the lines can be told."""
    kept, place = [], 0
    while match := _TRY.search(text, place):
        handler = text.find("except", match.end())
        end = text.find(":", handler) + 1 if handler >= 0 else 0
        if not end:
            break
        kept += [text[place : match.start()], "\n" * text.count("\n", match.start(), end)]
        place = end
    return "".join([*kept, text[place:]])
