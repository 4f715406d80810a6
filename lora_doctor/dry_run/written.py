"""The user's own files among the words of a command: a script or notebook, the file of a framework.

They are read as ``check`` reads them, for the rules about what is written there. Only where the
command runs in the environment that lora-doctor is in: those rules also read what is installed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_doctor.engine.evidence_store import EvidenceStore
from lora_doctor.errors import LoraDoctorError
from lora_doctor.recipe.files.read_write import read_recipe
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.program.setup import is_program
from lora_doctor.static.script.training_script import read_training_script

_SET_UPS = (".yaml", ".yml", ".json")


def keep_written(store: EvidenceStore, words: Sequence[str]) -> None:
    """Keep what can be read; a file that cannot be leaves its evidence as it is."""
    if not _in_this_environment(words[0]):
        return
    for number, word in enumerate(words[1:], 1):
        path = Path(word)
        if path.suffix in (".py", ".ipynb") and path.is_file() and is_program(path):
            _keep_program(store, path, tuple(words[number + 1 :]))
            break
    for word in words[1:]:
        path = Path(word.rpartition("=")[2])
        if path.suffix in _SET_UPS and path.is_file() and _keep_set_up(store, path):
            break


def _in_this_environment(program: str) -> bool:
    found = shutil.which(program)
    return found is not None and Path(found).absolute().parent == Path(sys.executable).parent


def _keep_program(store: EvidenceStore, path: Path, arguments: tuple[str, ...]) -> None:
    try:
        if path.suffix == ".py":
            origin = f"{path}, read with ast"
            script = store.timed("script", origin, lambda: read_training_script(path, None))
            store.keep("script", script)
        origin = f"{path}, read with libcst"
        store.keep(
            "program", store.timed("program", origin, lambda: read_setup(path, None, arguments))
        )
    except LoraDoctorError:
        return  # a value that our reader refuses: the run has shown what it does


def _keep_set_up(store: EvidenceStore, path: Path) -> bool:
    try:
        set_up = read_recipe(path).set_up
    except LoraDoctorError:
        return False  # a file of data, or of something else
    if set_up is None:
        return False
    store.keep("set_up", set_up)
    return True
