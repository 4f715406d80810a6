"""``lora-doctor fix -- COMMAND``: the file that a training command takes its set-up from."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError

_PROGRAMS = (".py", ".ipynb")
_SET_UPS = (*_PROGRAMS, ".sh", ".yaml", ".yml", ".json", ".toml")


def command_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The words of the command that stands in the place of MODEL; empty where MODEL is none."""
    model, words = str(options["model"]), tuple(options["script_arguments"] or ())
    if not words or shutil.which(model) is None or Path(model).is_dir():
        return ()
    is_set_up = Path(model).is_file() and Path(model).suffix in _SET_UPS
    return () if is_set_up else (model, *words)


def file_of(command: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The script or the framework's file in a command, and the script's own words.

    Raises:
        InputError: there is none, or the command line has settings of its own beside it.
    """
    from lora_doctor.recipe.files.shell_edit import find_commands

    told = " ".join(command)
    for training in find_commands(shlex.join(command)):
        if training.config and training.arguments:
            raise InputError(
                f"{told!r}: has settings beside {training.config}; write the command into a script "
                "and fix that: lora-doctor fix train.sh"
            )
        if training.config:
            return training.config, ()
    for number, word in enumerate(command):
        if Path(word).suffix in _PROGRAMS and os.path.isfile(word):  # never raises, however long
            return word, tuple(command[number + 1 :])
    raise InputError(
        f"{told!r}: names no file that holds the set-up; write the command into a script and fix "
        "that: lora-doctor fix train.sh"
    )
