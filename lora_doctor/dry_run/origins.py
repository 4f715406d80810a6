"""Where the value of a key comes from when no line of a script of the user's set it: the files that
are named on the command line. What stands in none of them is the framework's own choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lora_doctor.errors import LoraDoctorError
from lora_doctor.recipe.files.bytes import read_text
from lora_doctor.recipe.files.format import find_formats

_ENDINGS = (".yaml", ".yml", ".json")
#: A key of YAML or JSON at the beginning of a line.
_KEY = re.compile(r"""^\s*["']?([A-Za-z_]\w*)["']?\s*:""")


def lines_in_files(words: Sequence[str], keys: Iterable[str]) -> dict[str, str]:
    """Key to ``FILE:LINE``, of the files among the words of a command."""
    found: dict[str, str] = {}
    wanted = list(keys)
    for path in _files(words):
        lines = _lines(path)
        for key in wanted:
            line = next((lines[name] for name in _names(key) if name in lines), None)
            if line is not None:
                found.setdefault(key, f"{path}:{line}")
    return found


def _files(words: Sequence[str]) -> list[Path]:
    """Recipe files among the words, also behind ``--config=``."""
    paths = [Path(word.rpartition("=")[2]) for word in words]
    return [path for path in paths if path.suffix in _ENDINGS and path.is_file()]


def _lines(path: Path) -> dict[str, int]:
    """Name to the first line that begins with it."""
    found: dict[str, int] = {}
    try:
        text = read_text(path).text
    except (LoraDoctorError, OSError):
        return found
    for number, line in enumerate(text.splitlines(), 1):
        hit = _KEY.match(line)
        if hit:
            found.setdefault(hit[1], number)
    return found


def _names(key: str) -> list[str]:
    """What files of the known frameworks call a key, its own name first."""
    spelled = (one.name for made in find_formats() for one in made.SPELLINGS.of_key(key))
    return list(dict.fromkeys((key, *spelled)))
