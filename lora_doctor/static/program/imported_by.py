"""Which files of a program may be edited: its own, and those beside it that nobody else imports."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import PYTHON_BYTES
from lora_doctor.static.piece import read_bytes
from lora_doctor.static.program.program import Program
from lora_doctor.static.program.units import Unit

#: Files in which somebody else's import is looked for; in a folder with more, any may have one.
_MOST = 100


def may_edit(program: Program, unit: Unit) -> bool:
    """Whether a change of this unit changes this program alone."""
    return unit.editable or (unit in program.imported and not _imported_elsewhere(program, unit))


@functools.lru_cache(maxsize=64)
def _imported_elsewhere(program: Program, unit: Unit) -> bool:
    """Whether a file that the program does not read imports this one too."""
    path = Path(unit.file).resolve()
    name = path.parent.name if path.name == "__init__.py" else path.stem
    own = {program.path.resolve(), *(one.resolve() for one in program.beside)}
    folders = {program.path.resolve().parent, path.parent}
    try:
        found = [file for folder in folders for file in _python_files(folder)]
    except OSError:  # a folder that may not be listed
        return True
    others = [file for file in found if file not in own]
    return len(others) >= _MOST or any(_imports(file, name) for file in others)


def _python_files(folder: Path) -> list[Path]:
    found = (file for file in folder.iterdir() if file.suffix in (".py", ".ipynb"))
    return list(itertools.islice(found, _MOST))


def _imports(file: Path, name: str) -> bool:
    """Whether an import line has the name; a file that is not read may have one."""
    try:
        text = read_bytes(file, PYTHON_BYTES).decode("utf-8", "replace")
    except EvidenceError:
        return True
    return re.search(rf"\b(?:from|import)\b[^\r\n]*\b{re.escape(name)}\b", text) is not None
