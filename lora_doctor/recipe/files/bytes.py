"""Reading recipe files: bytes in, text out, with what the text does not say."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from lora_doctor.errors import InputError
from lora_doctor.files import reason_of
from lora_doctor.limits import RECIPE_BYTES

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
    return decode(path, read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """The content of a recipe file. Raises InputError as :func:`read_text`."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: is a directory; give the recipe file itself")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is not a regular file; give a recipe file")
        with path.open("rb") as stream:
            data = stream.read(RECIPE_BYTES + 1)
        if len(data) > RECIPE_BYTES:
            raise InputError(
                f"{path}: has {max(status.st_size, len(data)) >> 20} MiB; a recipe has at most "
                f"{RECIPE_BYTES >> 20} MiB, check that this is the right file"
            )
        return data
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from None


def decode(path: Path, data: bytes) -> FileText:
    """The text in the bytes of the file. Raises InputError: not UTF-8, or empty."""
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
