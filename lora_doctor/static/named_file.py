"""Files and folders that a set-up names by a path, which may be no path here at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


def named_file(name: str, folders: Iterable[Path]) -> Path | None:
    """The file of this name in the first of these folders that has it; ``None`` without one, and
    for a name that can be none: too long, with a NUL, below the home of nobody."""
    return next((path for path in _places(name, folders) if _is(path.is_file)), None)


def named_folder(name: str, folders: Iterable[Path]) -> Path | None:
    """The same for a folder."""
    return next((path for path in _places(name, folders) if _is(path.is_dir)), None)


def _places(name: str, folders: Iterable[Path]) -> Iterator[Path]:
    try:
        given = Path(name).expanduser()
    except RuntimeError:
        return
    yield from (folder / given for folder in folders)


def _is(there: Callable[[], bool]) -> bool:
    try:
        return there()
    except (OSError, ValueError):
        return False
