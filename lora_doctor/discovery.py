"""What is found by its place: the modules of a package, and those that installed packages add.

Rules, report formats, recipe formats, observers and patches are files that nothing lists. Asking by
the package's name keeps the arrow one way: who looks for a format knows none of them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from lora_doctor.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints, SelectableGroups


def module_names(package: str) -> list[str]:
    """The names of a package's modules in their order, those that begin with ``_`` left out."""
    own = importlib.import_module(package)
    names = (info.name for info in pkgutil.iter_modules(own.__path__))
    return sorted(name for name in names if not name.startswith("_"))


def find_modules(package: str, group: str | None = None) -> list[ModuleType]:
    """The modules of a package in the order of :func:`module_names`; then those that the entry
    points of a group name, if one is given.

    Raises:
        InputError: a module of another installed package cannot be imported, or is none.
    """
    modules = [importlib.import_module(f"{package}.{name}") for name in module_names(package)]
    if group is None:
        return modules
    return modules + [_load(point) for point in _entry_points().select(group=group)]


def is_added_to(group: str) -> bool:
    """Whether an installed package adds modules through this group of entry points."""
    return bool(_entry_points().select(group=group))


@functools.cache
def _entry_points() -> EntryPoints | SelectableGroups:  # the second until Python 3.11
    """Of all installed packages. To find them a file of each is read, which takes as long as all
    rules together: once is enough for a process."""
    from importlib.metadata import entry_points

    return entry_points()


def _load(point: EntryPoint) -> ModuleType:
    try:
        module = point.load()
    except (Exception, SystemExit) as error:  # another package's code may raise anything
        raise InputError(
            f"installed package: {point.value!r}, which adds to {point.group}, cannot be imported: "
            f"{type(error).__name__}: {error}; repair or uninstall it"
        ) from error
    if not isinstance(module, ModuleType):
        raise InputError(f"entry point {point.value!r} of {point.group}: is not a module")
    return module
