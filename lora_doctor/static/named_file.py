"""Files and folders that a set-up names by a path, which may be no path here at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

#: Files outside of a project that hold rows, as a rule.
_OF_ROWS = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet"})


def named_file(name: str, folders: Iterable[Path]) -> Path | None:
    """The file of this name in the first of these folders that has it; ``None`` without one, and
    for a name that can be none: too long, with a NUL, below the home of nobody."""
    return next((path for path in _places(name, folders) if _is(path.is_file)), None)


def named_folder(name: str, folders: Iterable[Path]) -> Path | None:
    """The same for a folder."""
    return next((path for path in _places(name, folders) if _is(path.is_dir)), None)


def rows_file(name: str, folders: Sequence[Path]) -> Path | None:
    """The same for a file with rows of training data, which may be quoted in what is reported:
    nothing hidden (keys, tokens), nothing of the system, nothing empty, as its files seem to be."""
    found = named_file(name, folders)
    if found is None:
        return None
    try:
        real = found.resolve()
        inside = next((one for one in map(Path.resolve, folders) if real.is_relative_to(one)), None)
        parts = real.relative_to(inside).parts if inside is not None else real.parts
        known = inside is not None or real.suffix.lower() in _OF_ROWS
        hidden = any(part.startswith(".") for part in parts)
        return found if known and not hidden and real.stat().st_size else None
    except (OSError, RuntimeError):
        return None


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
