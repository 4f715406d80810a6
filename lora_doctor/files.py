"""Files that are written: whole or not at all, and through whatever is not a plain file.

A plain file is replaced at once by a finished one. A symlink stays a symlink, its target is
replaced. A device, a FIFO and a descriptor that is open already (``/dev/null``, ``/dev/stdout``)
are written to, as a shell's ``>`` would. Several files are replaced together by
:func:`replace_files`, or none of them is.

A file that is mounted by itself (``docker run -v report.json:/out/report.json``) cannot be replaced
by renaming; it is overwritten while its old content lies beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_doctor.errors import HalfDoneError, InputError

#: Descriptors that now stand for another number: who moves standard output away from 1 says so
#: here, and ``/dev/stdout`` is still what the user means by it.
moved_descriptors: dict[int, int] = {}

_OPEN_FILE = re.compile(r"(?:/proc/(?P<process>\d+)|/dev)/fd/(?P<number>\d+)")
_MOST_LINKS = 40  # as Linux
#: What a rename over a mount point gives.
_MOUNTED = (errno.EBUSY, errno.EXDEV)
#: Bytes of a file's name that the name of its temporary file repeats: most systems take 255.
_NAME_BYTES = 120
#: How the names of files end that are there only while others are replaced.
TEMPORARY, OLD = ".tmp", ".old"


@dataclass(frozen=True)
class Destination:
    """Where a path leads. ``target``: behind all links. ``descriptor``: the number of a file that
    this process has open already. ``plain``: a regular file, or nothing yet."""

    path: Path
    target: Path
    descriptor: int | None = None
    plain: bool = True


@dataclass(frozen=True)
class Change:
    """One file of :func:`replace_files`: what it will hold, and whether to keep the old content
    beside it as ``NAME.bak`` (numbered when another, different one is there)."""

    path: Path
    data: bytes
    backup: bool = True


@dataclass(frozen=True)
class Replacement:
    """How one plain file is replaced. ``old``: a name under which the old file stays until the
    end, ``None`` when there is none; ``backup``: the one that is kept, made now or equal."""

    path: Path
    target: Path
    data: bytes
    temporary: Path
    old: Path | None = None
    backup: Path | None = None
    new_backup: bool = False


def destination(path: str | Path) -> Destination:
    """Where this path leads.

    Raises:
        InputError: to a folder or a disk.
        OSError: it cannot be looked at, or its links go in a circle.
    """
    path = Path(path)
    descriptor = _open_descriptor(path)
    if descriptor is not None:
        return Destination(path, path, descriptor, plain=False)
    target = Path(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return Destination(path, target)
    if stat.S_ISDIR(mode):
        raise InputError(f"output {str(path)!r}: is a folder; give a file name")
    if stat.S_ISBLK(mode):
        raise InputError(f"output {str(path)!r}: is a disk; give a file name")
    return Destination(path, target, plain=stat.S_ISREG(mode))


def check_writable(path: str | Path) -> None:
    """Raises InputError when nothing can be written to this path; opens nothing."""
    named = f"output {str(path)!r}"
    try:
        found = destination(path)
        if found.descriptor is not None:
            if not _accepts_writes(found.descriptor):
                raise InputError(f"{named}: is not open for writing; redirect it or give a file")
            return
        folder = found.target.parent
        if found.plain and not folder.is_dir():
            raise InputError(f"{named}: folder {str(folder)!r} does not exist; create it")
        blocked = (found.plain and not os.access(folder, os.W_OK)) or (
            found.target.exists() and not os.access(found.target, os.W_OK)
        )
    except (OSError, ValueError) as error:
        raise _cannot(path, error) from error
    if blocked:
        raise InputError(f"{named}: is not writable; choose another place")


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all, or through what is not a plain file. Raises InputError."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _cannot(path, error) from error
    write_bytes(path, data)


def write_bytes(path: str | Path, data: bytes) -> None:
    """As :func:`write_text`."""
    replace_files([Change(Path(path), data, backup=False)])


def replace_file(path: Path, data: bytes) -> Path | None:
    """Put ``data`` in the place of the file and keep what was there.

    Returns:
        The path of the backup; ``None`` when there was no file.

    Raises:
        InputError: it cannot be written; nothing has changed then.
    """
    return replace_files([Change(path, data)])[path]


def replace_files(
    changes: Sequence[Change],
    *,
    journal: Callable[[Sequence[Replacement]], contextlib.AbstractContextManager[None]]
    | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[Path, Path | None]:
    """Replace all these files or, when something fails on the way, none of them.

    All new files lie finished beside the old ones before the first is renamed, and renaming takes
    no room on the disk. What is not a plain file is written to just before the renames.

    Args:
        journal: entered before anything is made on the disk and left when all is done or undone;
            only a process that is killed meanwhile never leaves it.
        check: called right before the renames; what it raises undoes everything.

    Returns:
        For each path its backup, ``None`` where there is none.

    Raises:
        InputError: one cannot be written; all are as they were then.
        HalfDoneError: and what had been renamed could not be put back.
    """
    doing = changes[0].path if changes else Path()
    made: list[Path] = []
    try:
        found = [(change, destination(doing := change.path)) for change in changes]
        steps = [_plan(change, place.target) for change, place in found if place.plain]
        with journal(steps) if journal is not None else contextlib.nullcontext():
            try:
                for step in steps:
                    doing = step.path
                    _prepare(step, made)
                check()
                for change, place in found:
                    if not place.plain:
                        doing = change.path
                        _write_through(place, change.data)
                for step in steps:
                    doing = step.path
                    _put_in_place(step)
            except BaseException:
                _undo(steps, made)
                raise
            for step in steps:
                if step.old is not None:
                    # Every new file is in its place: a second name that stays behind is litter,
                    # and no reason to say that nothing was written.
                    with contextlib.suppress(OSError):
                        step.old.unlink(missing_ok=True)
                _sync_folder(step.target.parent)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _cannot(doing, error) from error
    backups = {step.path: step.backup for step in steps}
    return {change.path: backups.get(change.path) for change in changes}


# --- the steps -----------------------------------------------------------------------------------


def _plan(change: Change, target: Path) -> Replacement:
    token = os.urandom(4).hex()
    short = os.fsdecode(os.fsencode(target.name)[:_NAME_BYTES])
    temporary = target.with_name(f".{short}.{token}{TEMPORARY}")
    if not target.exists():
        return Replacement(change.path, target, change.data, temporary)
    old = target.with_name(f".{short}.{token}{OLD}")
    backup, new = _backup_of(change.path, target.read_bytes()) if change.backup else (None, False)
    return Replacement(change.path, target, change.data, temporary, old, backup, new)


def _backup_of(path: Path, data: bytes) -> tuple[Path, bool]:
    """The next free name beside ``path``, and True; or an equal backup that is there already."""
    number = 0
    while True:
        backup = path.with_name(path.name + ".bak" + (f".{number}" if number else ""))
        if not os.path.lexists(backup):
            return backup, True
        if backup.is_file() and backup.read_bytes() == data:
            return backup, False
        number += 1


def _prepare(step: Replacement, made: list[Path]) -> None:
    """The finished new file, and the old one under its other names."""
    status = step.target.stat() if step.old is not None else None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    handle = os.open(step.temporary, flags, 0o600)
    made.append(step.temporary)
    with os.fdopen(handle, "wb") as stream:
        stream.write(step.data)
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(step.temporary, stat.S_IMODE(status.st_mode) if status else 0o666 & ~_umask())
    if status is not None and step.old is not None:
        # Only root may give a file away; for everybody else the owner is right already. Windows
        # has no owners of this kind.
        if hasattr(os, "chown"):
            with contextlib.suppress(PermissionError):
                os.chown(step.temporary, status.st_uid, status.st_gid)
        _second_name(step.target, step.old, made)
        if step.backup is not None and step.new_backup:
            _second_name(step.target, step.backup, made)


def _second_name(file: Path, name: Path, made: list[Path]) -> None:
    """The same file under another name, which nobody has taken; a copy where links are not to be
    had (another file system, FAT, a file of somebody else's)."""
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:
        with open(name, "xb") as copy:
            made.append(name)
            copy.write(file.read_bytes())
            copy.flush()
            os.fsync(copy.fileno())
        from shutil import copystat

        copystat(file, name)
    else:
        made.append(name)


def _put_in_place(step: Replacement) -> None:
    """Let the finished file take the place of the old one."""
    try:
        os.replace(step.temporary, step.target)
    except OSError as error:
        if error.errno not in _MOUNTED or step.old is None:
            raise
        # Gone first: a file whose new one is no longer beside it has been touched, to `_undo` and
        # to who reads the journal after a kill.
        step.temporary.unlink()
        _overwrite(step.target, step.data)


def _put_back(old: Path, target: Path) -> None:
    try:
        os.replace(old, target)
    except OSError as error:
        if error.errno not in _MOUNTED:
            raise
        _overwrite(target, old.read_bytes())
        old.unlink()


def _overwrite(target: Path, data: bytes) -> None:
    """Truncated last: until then there is room on the disk for what the file held before."""
    with target.open("r+b") as stream:
        stream.write(data)
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())


def _undo(steps: Sequence[Replacement], made: Sequence[Path]) -> None:
    """Put back what was renamed and remove what was made. Raises HalfDoneError."""
    stuck: list[str] = []
    for step in reversed(steps):
        try:
            if step.temporary in made and not os.path.lexists(step.temporary):
                if step.old is not None:
                    _put_back(step.old, step.target)
                else:
                    step.target.unlink(missing_ok=True)
            for name in (step.temporary, step.old, step.backup):
                if name in made and name is not None:
                    name.unlink(missing_ok=True)
        except OSError as error:
            stuck.append(
                f"{step.target}: {reason_of(error)}" + (f"; was {step.old}" * bool(step.old))
            )
    if stuck:
        raise HalfDoneError(f"writing failed and could not be undone: {'; '.join(stuck)}")


def _write_through(place: Destination, data: bytes) -> None:
    """Into a device, a FIFO (waits for its reader) or a descriptor that is open already."""
    if place.descriptor is not None:
        handle = os.dup(moved_descriptors.get(place.descriptor, place.descriptor))
    else:
        handle = os.open(place.path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0))
    try:
        while data:
            data = data[os.write(handle, data) :]
    except BrokenPipeError:
        if place.descriptor is None:
            raise
        # `-o /dev/stdout | head`: the reader has seen enough.
    finally:
        os.close(handle)


def _open_descriptor(path: Path) -> int | None:
    """The number when a path means a file that this process has open (``/dev/stdout``)."""
    here = str(path)
    for _ in range(_MOST_LINKS):
        here = os.path.join(os.path.realpath(os.path.dirname(here) or "."), os.path.basename(here))
        match = _OPEN_FILE.fullmatch(here)
        if match and match["process"] in (None, str(os.getpid())):
            return int(match["number"])
        if not os.path.islink(here):
            return None
        here = os.path.join(os.path.dirname(here), os.readlink(here))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _accepts_writes(descriptor: int) -> bool:
    import fcntl  # a path names a descriptor on POSIX only

    try:
        flags = fcntl.fcntl(moved_descriptors.get(descriptor, descriptor), fcntl.F_GETFL)
    except OSError:
        return False
    return flags & os.O_ACCMODE != os.O_RDONLY


def _sync_folder(folder: Path) -> None:
    """Let the new names outlive a power cut, where a folder can be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _cannot(path: str | Path, error: Exception) -> InputError:
    """What, where and what to do, for what the system says."""
    reason = reason_of(error)
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason += "; make room or choose another place"
    return InputError(f"output {str(path)!r}: cannot be written: {reason}")


def reason_of(error: Exception) -> str:
    """What the system says of a file, without its number and the path."""
    return getattr(error, "strerror", None) or str(error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
