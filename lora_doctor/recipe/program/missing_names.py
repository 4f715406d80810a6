"""Names that a program imports and the installed libraries do not have: asked of their files."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.objects import top
from lora_doctor.recipe.program.pins import unmet
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.installed.environment import installed_text, package_folder
from lora_doctor.static.installed.import_chain import FOLLOWED
from lora_doctor.static.installed.installed_names import importable, module_file
from lora_doctor.static.installed.signatures import installed_version
from lora_doctor.static.place import Place
from lora_doctor.static.program.units import Unit

#: How alike an old and a new name are at least: ``prepare_model_for_int8_training`` and
#: ``prepare_model_for_kbit_training``.
_ALIKE = 0.85


@dataclass(frozen=True)
class MissingName:
    """An import of the program that fails with the installed release."""

    #: The module that is imported from.
    module: str
    #: The name; ``None`` where the module itself is missing.
    name: str | None
    #: The package of the module.
    package: str
    #: Its installed release.
    version: str
    place: Place
    #: An import that works here and is likely meant; empty where none is known.
    now: str

    @property
    def message(self) -> str:
        """What Python will say."""
        if self.name is None:
            return f"No module named {self.module!r}"
        return f"cannot import name {self.name!r} from {self.module!r}"


def missing_names(setup: Setup) -> Iterator[MissingName]:
    """The imports that fail, in their order.

    Only those that surely run are asked about: at the margin of the program, not under ``try`` or a
    condition. Packages of which the program pins another release than the installed one, and those
    that are not installed, are passed over.
    """
    pinned = {pin.package.replace("-", "_") for pin, _ in unmet(setup.program)}
    asked = set(FOLLOWED) - pinned
    for unit in setup.program.units:
        for module, name, line in _imports(unit):
            package = top(module)
            if package not in asked or package_folder(package) is None:
                continue
            lacks = _lacking(module, name)
            if lacks is not None:
                version = installed_version(package.replace("_", "-")) or ""
                place = _place(unit, line)
                yield MissingName(*lacks, package, version, place, _now(*lacks, name))


def _imports(unit: Unit) -> Iterator[tuple[str, str | None, int]]:
    """``(module, name, line)`` of each import at the margin; the name of a whole module is None."""
    try:
        tree = ast.parse(unit.python)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((each.name, None, node.lineno) for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, each.name, each.lineno) for each in node.names)


def _lacking(module: str, name: str | None) -> tuple[str, str | None] | None:
    if importable(module) == "gone":
        return module, None
    if name is None or name == "*" or importable(module, name) != "gone":
        return None
    return module, name


def _now(module: str, name: str | None, wanted: str | None) -> str:
    """The import that has the name today, or one with nearly the same name."""
    package = top(module)
    if wanted is None or wanted == "*":
        return ""
    if module != package and importable(package, wanted) == "there":
        return f"from {package} import {wanted}"
    opening = module_file(package)
    if name is None or opening is None:
        return ""
    words = sorted(set(re.findall(r"\w+", installed_text(opening))))
    for near in difflib.get_close_matches(wanted, words, n=3, cutoff=_ALIKE):
        if importable(package, near) == "there":
            return f"from {package} import {near}"
    return ""


def _place(unit: Unit, line: int) -> Place:
    file = unit.file if unit.cell is None else f"{unit.file}:cell {unit.cell}"
    return Place(file, line)
