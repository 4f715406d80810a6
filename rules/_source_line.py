"""The line of the user's code in which something happened."""

from __future__ import annotations

import re
from pathlib import Path

from lora_doctor.limits import PYTHON_BYTES

_NUMBER = re.compile(r"[0-9]{1,8}")
_LINE = 500


def line_at(where: str) -> str:
    """The text of the line at ``file.py:12``, without its indentation.

    Empty when the file is not there under that name (installed packages are told by a short one) or
    has no such line.
    """
    name, _, number = where.rpartition(":")
    path = Path(name)
    if not _NUMBER.fullmatch(number) or not path.is_absolute() or not path.is_file():
        return ""
    with path.open("rb") as stream:
        lines = stream.read(PYTHON_BYTES).decode("utf-8", "replace").splitlines()
    return lines[int(number) - 1].strip()[:_LINE] if 0 < int(number) <= len(lines) else ""
