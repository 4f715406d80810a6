"""Shell files beside a script, and which script a command of theirs starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lora_doctor.recipe.files.shell_syntax import SHELLS, Word

#: Shell files beside a script that are looked through.
_MOST_FILES = 40
#: Folders beside or above a script in which people keep them.
_FOLDERS = ("", "scripts", "script", "run", "runs", "bash", "shell", "slurm", "jobs")
_PYTHON = re.compile(r"python[\d.]*|pypy[\d.]*")
LAUNCHERS = ("accelerate", "torchrun", "deepspeed")
#: Modules that start a script as the program of that name does.
MODULES = {
    "torch.distributed.run": "torchrun", "torch.distributed.launch": "torchrun",
    "accelerate.commands.launch": "accelerate", "deepspeed.launcher.runner": "deepspeed",
}  # fmt: skip


def shell_files(script: Path) -> list[Path]:
    """Those beside a script; none where there are too many to know what they are for."""
    above = script.resolve().parent
    folders = dict.fromkeys(place / name for place in (above, above.parent) for name in _FOLDERS)
    found: list[Path] = []
    for folder in folders:
        if folder != folder.parent and folder.is_dir():
            try:
                found += [one for one in sorted(folder.iterdir()) if one.suffix in SHELLS]
            except OSError:
                continue
    return [one for one in found if one.is_file()] if len(found) <= _MOST_FILES else []


def script_in(words: Sequence[Word], folders: Sequence[Path]) -> tuple[int, Path | None]:
    """The number of the word of a command that names the script it runs, and its file; ``None``
    where that is in none of the folders, or the command does not run it (``git add train.py``)."""
    for number, word in enumerate(words):
        text = word.text or ""
        module = number > 0 and words[number - 1].text == "-m" and text not in MODULES
        parts = text.replace(".", "/")
        names = [f"{parts}.py", f"{parts}/__main__.py"] if module else [text]
        if text and (module or text.endswith(".py")):
            found = next((folder / name for name in names for folder in folders
                          if (folder / name).is_file()), None)  # fmt: skip
            runs = number == 0 or any(_starts_python(one.text or "") for one in words[:number])
            return number, found if runs else None
    return 0, None


def absent_script(words: Sequence[Word], folders: Sequence[Path]) -> Word | None:
    """The word of a command that names the script which Python is to run, where that is in none of
    the folders."""
    for number, word in enumerate(words):
        if (word.text or "").endswith(".py") and not word.variables:
            runs = number == 0 or any(_starts_python(one.text or "") for one in words[:number])
            return word if runs and script_in(words, folders)[1] is None else None
    return None


def _starts_python(text: str) -> bool:
    name = PurePosixPath(text).name
    return bool(_PYTHON.fullmatch(name)) or name in LAUNCHERS or name in ("uv", "-m")
