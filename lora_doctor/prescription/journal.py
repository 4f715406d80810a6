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
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.files import OLD, TEMPORARY, HalfDoneError, Step

_SUFFIX = ".lora-doctor-journal.json"
_SAYS = "lora-doctor fix --apply is replacing these files; it removes this one when it is done"
_MOST_BYTES = 1 << 20


def path_of(recipe: Path) -> Path:
    """Where the journal of an apply that writes this recipe lies."""
    return recipe.with_name(recipe.name + _SUFFIX)


@contextlib.contextmanager
def journal(path: Path, steps: Sequence[Step]) -> Iterator[None]:
    """Say in a file what is going on, for as long as it is going on.

    Raises:
        InputError: another run has written one, or it cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise InputError(unfinished(path) or f"{path}: was written meanwhile; run again") from None
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


def unfinished(path: Path, known: Sequence[Path] = ()) -> str:
    """What an apply that was killed has left, and how to undo it, in one line; empty when there
    is no journal.

    Args:
        known: the files that an apply here writes; others are not believed.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return ""
        with path.open(encoding="utf-8") as stream:
            if not _hold(stream.fileno()):
                return f"{path}: another `lora-doctor fix --apply` is writing here; wait for it"
            entries = json.loads(stream.read())["files"]
        left = [_left(entry, known) for entry in entries]
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


def _entry(step: Step) -> dict[str, Any]:
    return {
        "file": str(step.target),
        "new": step.temporary.name,
        "old": step.old.name if step.old is not None else None,
        "sha256": hashlib.sha256(step.data).hexdigest(),
    }


def _left(entry: Mapping[str, Any], known: Sequence[Path]) -> tuple[Path, bool, list[str]]:
    """A file of the journal, whether it has been replaced, and the commands that put it back.

    Raises:
        ValueError: no apply here writes such a file, or gives such a name.
    """
    file = Path(entry["file"])
    if known and file not in {Path(os.path.realpath(path)) for path in known}:
        raise ValueError(f"{file} is none of the files that are written here")
    new = _beside(file, entry["new"], TEMPORARY)
    old = _beside(file, entry["old"], OLD) if entry["old"] is not None else None
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    replaced = digest == entry["sha256"] and not new.exists()
    if replaced and old is not None and old.exists():
        return file, True, [shlex.join(["mv", "-f", str(old), str(file)])]
    commands = [shlex.join(["rm", str(path)]) for path in (new, old) if path and path.exists()]
    if replaced and entry["old"] is None:
        commands.append(shlex.join(["rm", str(file)]))
    return file, replaced, commands


def _beside(file: Path, name: str, ending: str) -> Path:
    if Path(name).name != name or not (name.startswith(".") and name.endswith(ending)):
        raise ValueError(f"{name!r} is no temporary file of an apply")
    return file.with_name(name)


def _sentence(path: Path, left: Sequence[tuple[Path, bool, list[str]]]) -> str:
    replaced = [str(file) for file, done, _ in left if done]
    others = [str(file) for file, done, _ in left if not done]
    commands = [command for _, _, each in left for command in each]
    undo = " && ".join([*commands, shlex.join(["rm", str(path)])])
    if not replaced:
        state = "nothing was replaced yet"
    elif others:
        state = f"{', '.join(replaced)} replaced, {', '.join(others)} not yet"
    else:
        state = f"{', '.join(replaced)} replaced"
    return f"an earlier `fix --apply` was stopped halfway: {state}; to undo it: {undo}"


def _unreadable(path: Path) -> str:
    return (
        f"{path}: an earlier `fix --apply` may have been stopped halfway, but this is not what it "
        "writes; compare the files here with their backups (.bak) and remove it"
    )
