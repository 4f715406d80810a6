"""Temporary folders that do not outlive us for long.

A folder is removed by who made it. One whose maker was killed is removed by the next of the same
user: the maker holds a lock on a file in it, which the system lets go when the process ends,
whatever ended it (and which holds across containers that share the folder, unlike a process id).
Nothing else in the place for temporary files is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from lora_doctor.errors import InputError

PREFIX = "lora-doctor-"
_LOCK = ".lora-doctor-lock"


class TemporaryFolder:
    """A private folder, made at once; :meth:`remove` removes it, at the latest the end of the
    process. ``path``: where it is.

    Raises:
        InputError: there is no place for temporary files.
    """

    def __init__(self) -> None:
        place = _place()
        _remove_left(place)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
            self._lock = _locked(self.path)
        except OSError as error:
            raise _no_place(error) from error
        self._remove = weakref.finalize(self, _remove, self.path, self._lock, os.getpid())

    def remove(self) -> None:
        """Remove it with all that it holds; twice is once."""
        self._remove()


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """A :class:`TemporaryFolder` for the length of a ``with``; gives its path."""
    folder = TemporaryFolder()
    try:
        yield str(folder.path)
    finally:
        folder.remove()


def _place() -> str:
    """Where temporary files go. Raises InputError."""
    try:
        return tempfile.gettempdir()
    except OSError as error:  # none of the usual places takes a file
        raise _no_place(error) from error


def _no_place(error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(
        f"temporary files cannot be written: {reason}; set TMPDIR to a folder that can be written "
        "and has room"
    )


def _locked(folder: Path) -> int:
    """The descriptor that holds the lock: it gets its name when it is locked already, so that no
    cleaner ever sees it free."""
    unfinished = folder / f"{_LOCK}.new"
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    if _take(descriptor):
        os.rename(unfinished, folder / _LOCK)
    return descriptor


def _take(descriptor: int) -> bool:
    """Lock an open file; False where somebody else holds it, or there are no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _remove(folder: Path, lock: int, process: int) -> None:
    if os.getpid() != process:
        return  # a fork that ends: the folder is its parent's
    _empty(folder)
    with contextlib.suppress(OSError):
        os.close(lock)
    shutil.rmtree(folder, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Remove all but the lock: whoever is killed meanwhile leaves a folder that can be told."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name == _LOCK:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _remove_left(place: str) -> None:
    """Remove our folders that no living process holds."""
    try:
        with os.scandir(place) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(PREFIX)]
    except OSError:
        return
    for name in names:
        folder = Path(place, name)
        lock = _left_by_nobody(folder)
        if lock is not None:
            _remove(folder, lock, os.getpid())


def _left_by_nobody(folder: Path) -> int | None:
    """The lock of a folder of ours, taken; None where it is held, or the folder is not ours."""
    try:
        status = os.lstat(folder)
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        if not ours or stat.S_IMODE(status.st_mode) != 0o700:
            return None
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, AttributeError):  # AttributeError: Windows
        return None
    held = os.fstat(descriptor)
    if stat.S_ISREG(held.st_mode) and held.st_uid == status.st_uid and _take(descriptor):
        return descriptor
    os.close(descriptor)
    return None
