"""Reading and replacing recipe files: bytes in, bytes out, nothing half written."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lora_doctor.errors import InputError

#: A hand-written recipe has a few kB; an adapter_config.json with a rank pattern for every expert
#: of a large mixture has a few MB. Beyond this it is something else (weights, a log).
MAX_BYTES = 16 << 20

_BOM = "\ufeff"


@dataclass(frozen=True)
class FileText:
    """The text of a file, and what of its bytes the text does not say."""

    text: str
    bom: bool

    def encode(self, text: str) -> bytes:
        """New text as bytes, with the byte order mark that the file had."""
        return ((_BOM if self.bom else "") + text).encode("utf-8")


def read_text(path: Path) -> FileText:
    """The text of a recipe file, its line ends as they are.

    Raises:
        InputError: missing, a directory, not a regular file, too large, unreadable, not UTF-8,
            or nothing in it.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: is a directory; give the recipe file itself")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is not a regular file; give a recipe file")
        if status.st_size > MAX_BYTES:
            raise InputError(
                f"{path}: has {status.st_size >> 20} MiB; a recipe has at most "
                f"{MAX_BYTES >> 20} MiB, check that this is the right file"
            )
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path}: cannot be read: {_reason(error)}") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    bom = text.startswith(_BOM)
    text = text.removeprefix(_BOM)
    if not text.strip():
        raise InputError(f"{path}: is empty; write at least one key, such as r: 16")
    return FileText(text, bom)


def replace_file(path: Path, data: bytes) -> Path:
    """Put ``data`` in the place of the file at once, and keep what was there.

    A symlink stays a symlink (its target is replaced); permissions stay. The old content lies in
    ``NAME.bak`` beside ``path``; an older, different backup is never overwritten.

    Returns:
        The path of the backup.

    Raises:
        InputError: the folder or the file cannot be written; nothing has changed then.
    """
    try:
        target = path.resolve(strict=True)
        status = target.stat()
        backup = _keep(path, target.read_bytes(), stat.S_IMODE(status.st_mode))
        temporary = _write_beside(target, data, stat.S_IMODE(status.st_mode))
        try:
            # Only root may give a file away; for everybody else the owner is right already.
            with contextlib.suppress(PermissionError):
                os.chown(temporary, status.st_uid, status.st_gid)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {_reason(error)}") from None
    return backup


def _keep(path: Path, data: bytes, mode: int) -> Path:
    """The backup of ``data``: an equal one that exists already, or the next free name."""
    number = 0
    while True:
        backup = path.with_name(path.name + ".bak" + (f".{number}" if number else ""))
        if not os.path.lexists(backup):
            break
        if backup.is_file() and backup.read_bytes() == data:
            return backup
        number += 1
    temporary = _write_beside(backup, data, mode)
    try:
        # A link, unlike a rename, fails when somebody else took the name meanwhile.
        os.link(temporary, backup)
    finally:
        temporary.unlink()
    return backup


def _write_beside(path: Path, data: bytes, mode: int) -> Path:
    """A finished temporary file in the folder of ``path``, ready to be renamed."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, mode)
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
