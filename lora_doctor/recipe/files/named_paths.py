"""Files and folders that a set-up names and that are not where it says.

A name such as ``saves/first`` may be one on a hub as well, and a path may exist only where the
training runs. So a path counts as missing only where the folder that would hold it is here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: How alike the name of a neighbour is that was probably meant.
_NEAR = 0.7
#: What a hub may have too; a folder that is called as an owner there proves little.
_OF_A_HUB = re.compile(r"\w[\w.-]*/[\w.-]+")
_FILES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt", ".yaml", ".yml", ".jinja", ".py")
#: Entries that no hub is asked for.
_LOCAL = frozenset({"resume_from_checkpoint", "deepspeed", "media_dir", "dataset_dir"})
#: Names in a folder that are looked at for one that was meant.
_MOST_NAMES = 1000


@dataclass(frozen=True)
class AbsentPath:
    """A path that is not here."""

    #: The entry that names it.
    entry: str
    path: str
    #: The folder that is here, and would hold it.
    folder: str
    #: The path that was probably meant; empty where none is near.
    near: str


def absent_paths(
    named: Iterable[tuple[str, str]], folders: list[Path], above: list[Path]
) -> list[AbsentPath]:
    """The paths of these entries that are missing.

    Args:
        named: each entry with a path.
        folders: where the training may be started: a relative path begins there.
        above: further folders in which it may lie.
    """
    found = []
    for entry, path in named:
        given = _expanded(path)
        if given is None or _anywhere(given, [*folders, *above]):
            continue
        folder = next(filter(None, (_holder(given, place) for place in folders)), None)
        if folder is not None:
            near = _near(given.name, folder)
            if not near and entry not in _LOCAL and _may_be_of_a_hub(path):
                continue
            meant = str(Path(path).parent / near) if near else ""
            found.append(AbsentPath(entry, path, str(folder), meant))
    return found


def _may_be_of_a_hub(path: str) -> bool:
    return _OF_A_HUB.fullmatch(path) is not None and not path.endswith(_FILES)


def _expanded(path: str) -> Path | None:
    """``None`` for what is a name only, or no path at all."""
    if not path.strip() or "://" in path or "\0" in path or "{" in path or "$" in path:
        return None
    try:
        given = Path(path.strip()).expanduser()
    except RuntimeError:  # the home of a user who is not here
        return None
    return given if len(given.parts) > 1 else None


def _anywhere(given: Path, places: Iterable[Path]) -> bool:
    try:
        return any((place / given).exists() for place in places)
    except OSError:
        return True  # a name that this machine cannot have


def _holder(given: Path, place: Path) -> Path | None:
    """The folder that would hold the path, where it is here."""
    folder = (place / given).parent
    try:
        return folder if folder.is_dir() else None
    except OSError:
        return None


def _near(name: str, folder: Path) -> str:
    names: list[str] = []
    for child in folder.iterdir():
        names.append(child.name)
        if len(names) == _MOST_NAMES:
            break
    found = difflib.get_close_matches(name, sorted(names), n=1, cutoff=_NEAR)
    return found[0] if found else ""


def of_entries(entries: Mapping[str, Any], *names: str) -> Iterator[tuple[str, str]]:
    """Each of these entries that is written with a path, or with several."""
    for name in names:
        for path in listed(entries.get(name)):
            yield name, path


def listed(value: Any) -> list[str]:
    """The strings of an entry that takes one or several."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [one for one in values if isinstance(one, str) and one.strip()]


def of_datasets(entries: Mapping[str, Any], name: str, *keys: str) -> Iterator[tuple[str, str]]:
    """The paths in a list of data sets, each a mapping with one of these keys."""
    given = entries.get(name)
    for one in given if isinstance(given, list) else ():
        for key in keys if isinstance(one, Mapping) else ():
            for path in listed(one.get(key)):
                yield name, path
