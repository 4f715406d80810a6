"""Files and folders that a set-up names and that are not where it says.

A name such as ``saves/first`` may be one on a hub as well, and a path may exist only where the
training runs. So a path counts as missing only where the folder that would hold it is here.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: How alike the name of a neighbour is that was probably meant.
_NEAR = 0.7
#: What a hub may have too; a folder that is called as an owner there proves little.
_OF_A_HUB = re.compile(r"\w[\w.-]*/[\w.-]+")
_FILES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt", ".yaml", ".yml", ".jinja", ".py")
#: Readers of local files, instead of a repository's name.
_READERS = frozenset({"json", "csv", "parquet", "text", "arrow", "webdataset", "imagefolder",
                      "audiofolder"})  # fmt: skip
#: Entries that no hub is asked for.
_LOCAL = frozenset({"resume_from_checkpoint", "deepspeed", "media_dir", "dataset_dir"})
#: Files that may make a path in an earlier step: how many are looked through, and the longest.
_STEPS = frozenset({".sh", ".py", ".yaml", ".yml"})
_MOST_FILES, _LONGEST = 60, 200_000
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
    named: Iterable[tuple[str, str]],
    folders: list[Path],
    above: list[Path],
    own: Sequence[str] = (),
) -> list[AbsentPath]:
    """The paths of these entries that are missing.

    A path that another file beside the set-up names as well is left out: a step before this one
    may make it.

    Args:
        named: each entry with a path.
        folders: where the training may be started: a relative path begins there.
        above: further folders in which it may lie.
        own: the files of the set-up itself.
    """
    found: list[AbsentPath] = []
    for entry, path in named:
        given = _expanded(path)
        if given is None or _anywhere(given, [*folders, *above]):
            continue
        folder = next(filter(None, (_holder(given, place) for place in folders)), None)
        if folder is not None:
            near = _near(given.name, folder)
            if not near and entry not in _LOCAL and _may_be_of_a_hub(path):
                continue
            if _named_elsewhere(given, folders, own):
                continue
            meant = str(Path(path).parent / near) if near else ""
            found.append(AbsentPath(entry, path, str(folder), meant))
    return found


def _may_be_of_a_hub(path: str) -> bool:
    return _OF_A_HUB.fullmatch(path) is not None and not path.endswith(_FILES)


def _expanded(path: str) -> Path | None:
    """``None`` for what is a name only, a pattern, or no path at all."""
    if not path.strip() or "://" in path or any(sign in path for sign in "\0{$*?["):
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


def _named_elsewhere(given: Path, folders: Iterable[Path], own: Sequence[str]) -> bool:
    """Whether another script or config names the path, or another command of the same file."""
    name, ours = given.as_posix(), {Path(one).resolve() for one in own}
    files = {one.resolve() for folder in folders for one in _scripts(folder)} | ours
    for file in itertools.islice(sorted(files), _MOST_FILES):
        try:
            readable = file.is_file() and file.stat().st_size < _LONGEST
            text = file.read_text("utf-8", "replace") if readable else ""
        except OSError:
            continue
        if text.count(name) > (file in ours):
            return True
    return False


def _scripts(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / "scripts"):
        try:
            inside = list(itertools.islice(place.iterdir(), _MOST_NAMES))
        except OSError:
            continue
        yield from (one for one in inside if one.suffix in _STEPS or one.name == "Makefile")


def _near(name: str, folder: Path) -> str:
    """The name in the folder that is nearly this one; what is alike is not the suffix alone."""
    stems: dict[str, str] = {}
    for child in itertools.islice(folder.iterdir(), _MOST_NAMES):
        stem = child.stem
        if stem not in stems or child.suffix == Path(name).suffix:
            stems[stem] = child.name
    found = difflib.get_close_matches(Path(name).stem, sorted(stems), n=1, cutoff=_NEAR)
    return stems[found[0]] if found else ""


def of_entries(entries: Mapping[str, Any], *names: str) -> Iterator[tuple[str, str]]:
    """Each of these entries that is written with a path, or with several."""
    for name in names:
        for path in listed(entries.get(name)):
            yield name, path


def listed(value: Any) -> list[str]:
    """The strings of an entry that takes one or several."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [one for one in values if isinstance(one, str) and one.strip()]


def of_datasets(entries: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
    """The paths in a list of data sets: ``path``, and ``data_files`` where that is the name of a
    reader of local files, not of a repository that has them."""
    given = entries.get(name)
    for one in given if isinstance(given, list) else ():
        if isinstance(one, Mapping):
            paths = listed(one.get("path"))
            yield from ((name, path) for path in paths)
            if all(path in _READERS for path in paths):
                yield from ((name, path) for path in listed(one.get("data_files")))
