"""The line of the user's code in which something happened."""

from __future__ import annotations

from pathlib import Path


def line_at(where: str) -> str:
    """The text of the line at ``file.py:12``, without its indentation.

    Empty when the file is not there under that name (installed packages are told by a short one) or
    has no such line.
    """
    name, _, number = where.rpartition(":")
    path = Path(name)
    if not number.isdigit() or not path.is_absolute() or not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[int(number) - 1].strip() if 0 < int(number) <= len(lines) else ""
