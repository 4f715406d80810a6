"""Files that are written: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lora_doctor.errors import InputError


def check_writable(path: str | Path) -> None:
    """Raises InputError when a file cannot be put at this path."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"output {str(path)!r}: is a folder; give a file name")
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"output {str(path)!r}: folder {str(folder)!r} does not exist; create it")
    blocked = not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK))
    if blocked:
        raise InputError(f"output {str(path)!r}: is not writable; choose another place")


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all: into a temporary file beside it, then renamed."""
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
            os.chmod(name, mode)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise InputError(f"output {str(path)!r}: cannot be written: {error.strerror}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
