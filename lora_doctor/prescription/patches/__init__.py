"""Patches of the running process, one per file, for what no edit of the recipe can do.

A patch is a module of this folder with:

- ``NAME``, the name of its file, and ``SUMMARY``, one line on what it does;
- ``why_not() -> str | None``: the reason why it does not fit the installed libraries, found by
  looking (signatures, attributes), or ``None``;
- ``install(**parameters) -> Callable[[], None]``: change the process and return the way back.
  Where the installed libraries do not need it, it changes nothing.

A patch changes classes in memory, never files, and acts only where the unpatched process would
fail; the first time that it does, it says so in the log of ``lora_doctor``. Methods are replaced by
``Changes`` of ``_support``, so that patches on one method are undone in any order.
"""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from lora_doctor.discovery import module_names
from lora_doctor.errors import InputError, PatchError
from lora_doctor.recipe.edit import Patch

__all__ = [
    "PatchError", "install", "install_all", "install_patches", "load_patch", "patch_names",
]  # fmt: skip

Undo = Callable[[], None]


@dataclass
class _Installed:
    """A patch in force: how to take it out, and for how many callers it is in."""

    parameters: Mapping[str, Any]
    undo: Undo
    users: int = 1


#: What the module of a patch has to have.
_PARTS = ("NAME", "SUMMARY", "why_not", "install")

_installed: dict[str, _Installed] = {}
_lock = threading.RLock()


def patch_names() -> tuple[str, ...]:
    """The patches that there are: the files of this folder, but for what they share."""
    return tuple(module_names(__name__))


def load_patch(name: str) -> ModuleType:
    """The module of a patch.

    Raises:
        InputError: there is no such patch, or its file lacks a part. Only names of files of this
            folder are imported, whatever a prescription says.
    """
    names = patch_names()
    if name not in names:
        raise InputError(f"patch {name!r}: no such patch; there are {', '.join(names)}")
    module = importlib.import_module(f"{__name__}.{name}")
    missing = [part for part in _PARTS if not hasattr(module, part)]
    if missing:
        raise InputError(
            f"patch {name!r}: has no {', '.join(missing)}; "
            "copy prescription/patches/drop_none_arguments.py"
        )
    if name != module.NAME:
        raise InputError(f"patch {name!r}: its NAME is {module.NAME!r}; give it that of its file")
    return module


def check_patch(patch: Patch, where: str) -> None:
    """Raises InputError when there is no such patch, or it takes no such parameters."""
    try:
        module = load_patch(patch.name)
        inspect.signature(module.install).bind(**patch.parameters)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except TypeError as error:
        raise InputError(f"{where}: patch {patch.name!r}: {error}") from None


def install(patch: Patch) -> Undo:
    """Put one patch in force and return the way back.

    Installing what is in force already changes nothing; the patch goes when everybody who
    installed it has undone it. Safe to call from several threads.

    Raises:
        InputError: there is no such patch.
        PatchError: it does not fit what is installed, or is in force with other parameters.
    """
    module = load_patch(patch.name)
    with _lock:
        present = _installed.get(patch.name)
        if present is None:
            reason = module.why_not()
            if reason:
                raise PatchError(f"patch {patch.name!r} does not fit this environment: {reason}")
            try:
                undo = module.install(**dict(patch.parameters))
            except Exception as error:
                what = "wrong parameters" if isinstance(error, TypeError) else type(error).__name__
                raise PatchError(
                    f"patch {patch.name!r} cannot be installed: {what}: {error}"
                ) from error
            _installed[patch.name] = _Installed(dict(patch.parameters), undo)
        elif dict(present.parameters) != dict(patch.parameters):
            raise PatchError(
                f"patch {patch.name!r} is in force with parameters {dict(present.parameters)}; "
                f"undo it before installing it with {dict(patch.parameters)}"
            )
        else:
            present.users += 1
    return _undo_once(patch.name)


def install_all(patches: Iterable[Patch]) -> Undo:
    """Put all of them in force or, if one cannot be, none. Raises as :func:`install`."""
    undos: list[Undo] = []

    def undo_all() -> None:
        while undos:
            undos.pop()()

    try:
        for patch in patches:
            undos.append(install(patch))
    except BaseException:
        undo_all()
        raise
    return undo_all


def _undo_once(name: str) -> Undo:
    """The way back for one caller; calling it again does nothing."""
    done = False

    def undo() -> None:
        nonlocal done
        with _lock:
            if done:
                return
            done = True
            present = _installed[name]
            present.users -= 1
            if not present.users:
                del _installed[name]
                present.undo()

    return undo


def install_patches(patches: Sequence[Mapping[str, Any]]) -> list[str]:
    """Put the patches of a prescription in force in a child process, until it ends.

    Args:
        patches: ``{"name", "parameters"}`` of each.

    Returns:
        Their names.

    Raises:
        InputError, PatchError: as :func:`install`; none of them is in force then.
    """
    wanted = [Patch(str(item["name"]), dict(item.get("parameters") or {})) for item in patches]
    install_all(wanted)
    return [patch.name for patch in wanted]
