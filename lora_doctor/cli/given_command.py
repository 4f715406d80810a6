"""``lora-doctor fix -- COMMAND``: the file that a training command takes its set-up from."""

from __future__ import annotations

import os
import re
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
    shell = _shell_file(command)
    if shell is not None:
        return shell, ()
    for number, word in enumerate(command):
        if Path(word).suffix in _PROGRAMS and os.path.isfile(word):  # never raises, however long
            return word, tuple(command[number + 1 :])
    raise InputError(
        f"{told!r}: names no file that holds the set-up; write the command into a script and fix "
        "that: lora-doctor fix train.sh"
    )


def _shell_file(command: Sequence[str]) -> str | None:
    """The file of ``bash run.sh`` or ``./run.sh``, where the set-up is in it.

    Raises:
        InputError: it hands words of the command line on, which are not read.
    """
    from lora_doctor.recipe.files.bytes import decode, read_bytes
    from lora_doctor.recipe.files.shell_syntax import (
        SHELL_PROGRAMS,
        SHELLS,
        hands_on_its_arguments,
    )

    number = 1 if Path(command[0]).name in SHELL_PROGRAMS else 0
    while number and number < len(command) and re.fullmatch(r"[-+][a-zA-Z]+", command[number]):
        number += 1  # `-x`
    word = command[number] if number < len(command) else ""
    if Path(word).suffix.lower() not in SHELLS or not os.path.isfile(word):
        return None
    path = Path(word)
    if command[number + 1 :] and hands_on_its_arguments(decode(path, read_bytes(path)).text):
        shown, alone = " ".join(command), " ".join(command[: number + 1])
        raise InputError(
            f"{shown!r}: {word} hands the words behind it on to the training; write them into it "
            f"and fix that: lora-doctor fix --apply -- {alone}"
        )
    return word
