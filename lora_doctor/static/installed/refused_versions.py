"""Versions of installed packages that another installed package refuses while it runs.

Read from the sources of the one that refuses: transformers' table, which ``import transformers``
compares; PEFT's functions that raise ``ImportError`` and that every ``get_peft_model`` calls;
transformers' least accelerate, without which its ``Trainer`` refuses. Nothing is imported.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.static.installed.environment import (
    installed_text,
    installed_version,
    package_folder,
)

#: What a version is refused by: the statement that raises.
IMPORT, LORA, TRAINER = "import transformers", "get_peft_model", "Trainer"


@dataclass(frozen=True)
class RefusedVersion:
    """``package`` is installed as ``installed``; ``asker`` takes ``wanted`` (a pip requirement).

    ``by`` is the statement that raises, ``file`` and ``line`` where the limit is written.
    """

    asker: str
    package: str
    installed: str
    wanted: str
    by: str
    file: str
    line: int


@functools.cache
def refused_versions() -> tuple[RefusedVersion, ...]:
    """Every refusal that can be read."""
    return (*_by_transformers(), *_by_peft(), *_by_trainer())


def _by_transformers() -> Iterator[RefusedVersion]:
    """As ``dependency_versions_check.py`` does at import; Python's own version is left to pip."""
    from packaging.requirements import InvalidRequirement, Requirement

    folder = package_folder("transformers")
    if folder is None:
        return
    table = _parsed(folder / "dependency_versions_table.py")
    check = _parsed(folder / "dependency_versions_check.py")
    deps = _literal(table, "deps") or {}
    least_accelerate = _accelerate_minimum(folder)
    for name in _literal(check, "pkgs_to_check_at_runtime") or ():
        try:
            wanted = Requirement(deps.get(name, ""))
        except InvalidRequirement:
            continue
        installed = installed_version(wanted.name)
        if installed is None or name == "python":
            continue
        if name == "accelerate" and least_accelerate and _older(installed, least_accelerate[0]):
            continue  # taken for not installed, and not compared
        if not wanted.specifier.contains(installed, prereleases=True):
            line = _line_of(table, deps[name])
            yield RefusedVersion(
                "transformers", wanted.name, installed, str(wanted), IMPORT,
                "transformers/dependency_versions_table.py", line,
            )  # fmt: skip


def _by_trainer() -> Iterator[RefusedVersion]:
    folder = package_folder("transformers")
    installed = installed_version("accelerate")
    least = _accelerate_minimum(folder) if folder is not None else None
    if least is None or installed is None or not _older(installed, least[0]):
        return
    yield RefusedVersion(
        "transformers", "accelerate", installed, f"accelerate>={least[0]}", TRAINER,
        "transformers/utils/import_utils.py", least[1],
    )  # fmt: skip


def _accelerate_minimum(folder: Path) -> tuple[str, int] | None:
    """The least accelerate of this transformers, and the line; None where it names none."""
    text = installed_text(folder / "utils" / "import_utils.py")
    found = re.search(r"^ACCELERATE_MIN_VERSION = \"([\d.]+)\"", text, re.MULTILINE)
    return (found[1], text.count("\n", 0, found.start()) + 1) if found else None


def _by_peft() -> Iterator[RefusedVersion]:
    """Functions of ``peft/import_utils.py`` that raise, where a dispatcher of LoRA layers calls
    them: PEFT asks each dispatcher about each layer, whatever it is made of."""
    folder = package_folder("peft")
    if folder is None:
        return
    raising = {
        node.name: refused
        for node in _parsed(folder / "import_utils.py").body
        if isinstance(node, ast.FunctionDef) and (refused := tuple(_Refusal(node).refused()))
    }
    if raising:
        for name in sorted(_asked_by_dispatchers(folder / "tuners" / "lora") & set(raising)):
            yield from raising[name]


def _asked_by_dispatchers(folder: Path) -> set[str]:
    """Names that the ``dispatch_`` functions call."""
    names: set[str] = set()
    for file in sorted(folder.glob("*.py")):
        for node in _parsed(file).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("dispatch_"):
                names |= {
                    call.func.id
                    for call in ast.walk(node)
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
                }
    return names


_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class _Refusal:
    """A function that compares the version of a package with one that it names, and raises."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self.function = function
        #: Variables that hold a version: the package, or the number that is written.
        self.packages: dict[str, str] = {}
        self.numbers: dict[str, str] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._assigned(node.targets[0].id, node.value)

    def _assigned(self, name: str, value: ast.expr) -> None:
        for call in ast.walk(value):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            first, called = call.args[0], ast.unparse(call.func).rpartition(".")[2]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                if called == "version":
                    self.packages[name] = first.value
                elif called == "parse":
                    self.numbers[name] = first.value

    def refused(self) -> Iterator[RefusedVersion]:
        for node in ast.walk(self.function):
            if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
                continue
            for branch, holds in ((node.body, True), (node.orelse, False)):
                if any(isinstance(step, ast.Raise) for step in branch):
                    yield from self._compared(node.test, holds)

    def _compared(self, test: ast.Compare, holds: bool) -> Iterator[RefusedVersion]:
        """A refusal, where the comparison comes out as ``holds`` for what is installed."""
        from packaging.version import InvalidVersion, Version

        compare = _COMPARED.get(type(test.ops[0]))
        sides = [ast.unparse(side) for side in (test.left, test.comparators[0])]
        package = next((self.packages[side] for side in sides if side in self.packages), None)
        number = next((self.numbers[side] for side in sides if side in self.numbers), None)
        installed = installed_version(package) if package else None
        if compare is None or number is None or package is None or installed is None:
            return
        try:
            values = [Version(installed if side in self.packages else number) for side in sides]
        except InvalidVersion:
            return
        if compare(*values) is holds:
            yield RefusedVersion(
                "peft", package, installed, f"{package}>={number}", LORA,
                "peft/import_utils.py", test.lineno,
            )  # fmt: skip


def _older(installed: str, least: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(installed) < Version(least)
    except InvalidVersion:
        return False


@functools.lru_cache(maxsize=64)
def _parsed(file: Path) -> ast.Module:
    """The syntax tree of a file; an empty one where it cannot be read."""
    try:
        return ast.parse(installed_text(file))
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module(body=[], type_ignores=[])


def _literal(tree: ast.Module, name: str) -> Any:
    """The value that a module assigns to a name, where it is written out."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                return None
    return None


def _line_of(tree: ast.Module, text: str) -> int:
    return next(
        (node.lineno for node in ast.walk(tree)
         if isinstance(node, ast.Constant) and node.value == text),
        1,
    )  # fmt: skip
