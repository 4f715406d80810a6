"""The line of the user's code in which something happened."""

from __future__ import annotations

from pathlib import Path, PurePath

from lora_doctor.rule_api import PYTHON_BYTES, place_of

_LINE = 500


def line_at(where: str) -> str:
    """The code at ``file.py:12``, without indentation.

    Empty when the file is not there under that name (installed packages are told by a short one) or
    has no such line.
    """
    place = place_of(where)
    if place is None:
        return ""
    path, number = Path(place[0]), place[1]
    if not path.is_absolute() or not path.is_file():
        return ""
    with path.open("rb") as stream:
        lines = stream.read(PYTHON_BYTES).decode("utf-8", "replace").splitlines()
    return lines[number - 1].strip()[:_LINE] if 0 < number <= len(lines) else ""


def without_folders(where: str) -> str:
    """``file.py:12`` of a place in any folder; empty when there is none."""
    place = place_of(where)
    return f"{PurePath(place[0]).name}:{place[1]}" if place else ""
