"""Files beside the program that it imports."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import PYTHON_BYTES
from lora_doctor.static.piece import read_bytes
from lora_doctor.static.program.units import Unit
from lora_doctor.static.program.values import Known, ModuleValue, Scope

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context

_MOST = 20
#: Folders above the program in which the root of its repository is looked for.
_ABOVE = 4


def sibling(follower: Context, module: str, dots: int) -> ModuleValue | None:
    """The module, where a file beside the program is what Python would import; else ``None``."""
    if not module or not all(part.isidentifier() for part in module.split(".")):
        return None
    folder = Path(follower.unit.file).parent if dots else follower.folder
    for _ in range(dots - 1):
        folder = folder.parent
    for place in [folder] if dots else [folder, *_above(folder, module.partition(".")[0])]:
        path = place.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return _followed(follower, file)
    return None


def _above(folder: Path, package: str) -> list[Path]:
    """The folders above, up to the root of the repository, from where ``python -m`` may start the
    program; none for a package that is installed, which wins there."""
    try:
        installed = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # ``__main__``, or a stub in its place
        installed = True
    if installed:
        return []
    above = list(folder.resolve().parents)[:_ABOVE]
    root = next((n for n, place in enumerate([folder, *above]) if (place / ".git").exists()), 0)
    return above[:root]


def _followed(follower: Context, file: Path) -> ModuleValue | None:
    key = file.resolve()
    if key in follower.modules or len(follower.modules) >= _MOST:
        return follower.modules.get(key)
    follower.modules[key] = None  # while it is being followed: a circle of imports
    try:
        data = follower.beside.get(file)
        data = read_bytes(file, PYTHON_BYTES) if data is None else data
        unit = Unit(str(file), data.decode("utf-8-sig"), editable=False)
        _ = unit.module
    except (EvidenceError, UnicodeDecodeError):
        return None
    follower.beside[file] = data
    follower.imported.append(unit)
    kept = follower.scope, follower.unit
    follower.scope = Scope({"__file__": Known(str(file))})
    try:
        follower.follow(unit)
        follower.modules[key] = ModuleValue(follower.scope)
    finally:
        follower.scope, follower.unit = kept
    return follower.modules[key]
