"""The journal of ``fix --apply``: what it is about to replace, for the run after one that was
killed meanwhile.

It lies beside the recipe, is written before anything else is, and goes when all is done or undone.
What is read of it is not believed but compared with the folder: only names that ``fix --apply``
itself would give are repeated to the user.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import HalfDoneError, InputError
from lora_doctor.files import OLD, TEMPORARY, Replacement

_SUFFIX = ".lora-doctor-journal.json"
_SAYS = "lora-doctor fix --apply is replacing these files; it removes this one when it is done"
_MOST_BYTES = 1 << 20


def path_of(recipe: Path) -> Path:
    """Where the journal of an apply that writes this recipe lies."""
    return recipe.with_name(recipe.name + _SUFFIX)


@contextlib.contextmanager
def journal(
    recipe: Path, steps: Sequence[Replacement], names: Collection[str] = ()
) -> Iterator[None]:
    """Say in a file what is going on, for as long as it is going on.

    Raises:
        InputError: another run has written one, or it cannot be written.
    """
    path = path_of(recipe)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        left = unfinished(recipe, names) or f"{path}: was written meanwhile; run again"
        raise InputError(left) from None
    except OSError as error:
        raise InputError(f"output {str(path)!r}: cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            _hold(stream.fileno())
            json.dump({"what": _SAYS, "files": [_entry(step) for step in steps]}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
            yield
    except HalfDoneError:
        raise  # the journal says what is left
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)


def unfinished(recipe: Path, names: Collection[str]) -> str:
    """What an apply to this recipe that was killed has left, and how to undo it, in one line;
    empty when there is no journal.

    Args:
        names: of the other files that an apply writes; what is called otherwise is not believed.
    """
    path = path_of(recipe)
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return ""
        with path.open(encoding="utf-8") as stream:
            if not _hold(stream.fileno()):
                return f"{path}: another `lora-doctor fix --apply` is writing here; wait for it"
            entries = json.loads(stream.read())["files"]
        left = [_left(entry, Path(os.path.realpath(recipe)), names) for entry in entries]
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}; remove it"
    except (ValueError, KeyError, TypeError):
        return _unreadable(path)
    return _sentence(path, left)


def _hold(descriptor: int) -> bool:
    """Lock the open journal until it is closed, so that a living process can be told from a dead
    one; whether nobody else holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def _entry(step: Replacement) -> dict[str, Any]:
    return {
        "file": str(step.target),
        "new": step.temporary.name,
        "old": step.old.name if step.old is not None else None,
        "sha256": hashlib.sha256(step.data).hexdigest(),
    }


@dataclass(frozen=True)
class _Left:
    """A file of the journal: whether it has been replaced, and the temporary files beside it.

    ``half``: it is neither what it was nor what it was to be, which only a file can be that was
    written in its place (``files``: mounted by itself).
    """

    file: Path
    replaced: bool
    was_new: bool
    old: Path | None
    others: tuple[Path, ...]
    half: bool = False

    @property
    def undo(self) -> list[str]:
        rest = [shlex.join(["rm", str(path)]) for path in self.others]
        if (self.replaced or self.half) and self.old is not None:
            if self.half or _is_mounted(self.file):
                return [*rest, *_copied_back(self.old, self.file)]
            return [*rest, shlex.join(["mv", "-f", str(self.old), str(self.file)])]
        if self.replaced and self.was_new:
            return [*rest, shlex.join(["rm", str(self.file)])]
        return rest + ([shlex.join(["rm", str(self.old)])] if self.old is not None else [])


def _left(entry: Mapping[str, Any], recipe: Path, names: Collection[str]) -> _Left:
    """What there is of a file of the journal.

    Raises:
        ValueError: no apply here writes such a file, or gives such a name.
    """
    file = Path(entry["file"])
    if file != recipe and file.name not in names:
        raise ValueError(f"{file} is not a file that an apply to {recipe} writes")
    new = _beside(file, entry["new"], TEMPORARY)
    old = _beside(file, entry["old"], OLD) if entry["old"] is not None else None
    data = file.read_bytes() if file.is_file() else b""
    replaced = hashlib.sha256(data).hexdigest() == entry["sha256"] and not new.exists()
    there = old if old is not None and old.exists() else None
    return _Left(
        file,
        replaced=replaced,
        was_new=old is None,
        old=there,
        others=(new,) if new.exists() else (),
        half=not (replaced or new.exists()) and there is not None and there.read_bytes() != data,
    )


def _copied_back(old: Path, file: Path) -> list[str]:
    """Nothing can be renamed to a file that is mounted by itself."""
    return [shlex.join(["cp", str(old), str(file)]), shlex.join(["rm", str(old)])]


def _is_mounted(file: Path) -> bool:
    """Whether something is mounted on this very file (Linux: containers do that)."""
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    escaped = re.sub(rb"[\x00-\x20\\]", lambda found: b"\\%03o" % found[0][0], os.fsencode(file))
    return any(line.split()[4:5] == [escaped] for line in mounts)


def _beside(file: Path, name: str, ending: str) -> Path:
    if Path(name).name != name or not (name.startswith(".") and name.endswith(ending)):
        raise ValueError(f"{name!r} is not a temporary file of an apply")
    return file.with_name(name)


def _sentence(path: Path, left: Sequence[_Left]) -> str:
    replaced = [str(each.file) for each in left if each.replaced]
    half = [str(each.file) for each in left if each.half]
    others = [str(each.file) for each in left if not (each.replaced or each.half)]
    if not (half or others):
        rest = [str(each.old) for each in left if each.old is not None]
        tidy = shlex.join(["rm", *rest, str(path)])
        return f"an earlier `fix --apply` was stopped when all was written; to tidy up: {tidy}"
    parts = [
        f"{', '.join(files)} {what}"
        for files, what in ((replaced, "replaced"), (half, "half written"), (others, "not"))
        if files
    ]
    state = ", ".join(parts) if replaced or half else "nothing was replaced yet"
    undo = " && ".join(
        [*(command for each in left for command in each.undo), shlex.join(["rm", str(path)])]
    )
    return f"an earlier `fix --apply` was stopped halfway: {state}; to undo it: {undo}"


def _unreadable(path: Path) -> str:
    return (
        f"{path}: an earlier `fix --apply` may have been stopped halfway, but this is not what it "
        "writes; compare the files here with their backups (.bak) and remove it"
    )
