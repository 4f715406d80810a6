"""Arguments of a training command changed in the script, every other byte as it was."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.files.shell_arguments import (
    Argument,
    TrainingCommand,
    training_commands,
)
from lora_doctor.recipe.files.shell_cut import rejoined
from lora_doctor.recipe.files.shell_syntax import Word, commands
from lora_doctor.recipe.files.yaml_splice import CannotSpliceError

#: The value of ``--rank=$RANK``.
_VARIABLE = re.compile(r"(\"?)\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})\1")


def training_command(text: str, path: Path) -> TrainingCommand:
    """The one command of the script that trains.

    Raises:
        InputError: there is none, or more than one.
    """
    found = find_commands(text)
    if not found:
        raise InputError(
            f"{path}: has no command of LLaMA-Factory, axolotl, TRL or ms-swift; to see what a "
            f"command does: lora-doctor dry-run -- bash {path}"
        )
    if len(found) > 1:
        lines = ", ".join(str(text.count("\n", 0, one.start) + 1) for one in found)
        raise InputError(
            f"{path}: has {len(found)} commands that train (lines {lines}); keep each in a file of "
            "its own"
        )
    return found[0]


def find_commands(text: str) -> list[TrainingCommand]:
    """The commands of the script that train, each up to the last option that it was meant to have
    (:mod:`~lora_doctor.recipe.files.shell_cut` tells where it ends before)."""
    return training_commands(commands(rejoined(text), os.environ))


def set_entry(text: str, path: Path, name: str, value: Any) -> str:
    """The script with this argument set; a new one goes to the end of the command."""
    command = training_command(text, path)
    argument = _find(command, name)
    if argument is None:
        return _inserted(text, command, name, value)
    written = _words(value, _capital(text, argument))
    if argument.joined and len(written) > 1:
        raise CannotSpliceError
    if not argument.words:  # a flag
        return text[: argument.end] + " " + " ".join(written) + text[argument.end :]
    word = argument.words[0]
    variable = word.is_variable or _VARIABLE.fullmatch(text, word.start, word.end)
    if len(argument.words) == 1 and variable:
        place = assignment(text, word.variables[0])
        if place is not None and len(written) == 1:
            return text[: place[0]] + _like(text[slice(*place)], written[0]) + text[place[1] :]
    old = text[word.start : argument.words[-1].end]
    new = _like(old, written[0]) if len(written) == 1 else " ".join(written)
    return text[: word.start] + new + text[argument.words[-1].end :]


def remove_entry(text: str, path: Path, name: str) -> str:
    """The script without this argument, and without its line where it had one."""
    argument = _find(training_command(text, path), name)
    if argument is None:
        return text
    before = re.compile(r"(?:[ \t\r\n]|\\(?=\r?\n))*\Z").search(text, 0, argument.start)
    start = before.start() if before else argument.start
    return text[:start] + text[argument.end :]


def _find(command: TrainingCommand, name: str) -> Argument | None:
    found = [argument for argument in command.arguments if argument.name == name]
    return found[-1] if found else None


def _words(value: Any, capital: bool) -> list[str]:
    if isinstance(value, list):
        return [shlex.quote(str(item)) for item in value]
    if isinstance(value, bool):
        return [str(value) if capital else str(value).lower()]
    if isinstance(value, dict):
        return [shlex.quote(json.dumps(value))]
    return [shlex.quote(str(value))]


def _like(old: str, new: str) -> str:
    """The new word in the quotes of the old one, where that is the same word."""
    plain = re.fullmatch(r"[\w.,/:@%+=-]*", new)
    if plain and len(old) > 1 and old[0] == old[-1] and old[0] in "'\"":
        return old[0] + new + old[0]
    return new


def _capital(text: str, argument: Argument) -> bool:
    return any(text[word.start : word.end].strip("'\"") in ("True", "False")
               for word in argument.words)  # fmt: skip


def assignment(text: str, name: str) -> tuple[int, int] | None:
    """Where the value of a variable stands that is set once and used once; ``None`` where others
    use it as well, whose value is not to change."""
    uses = re.findall(rf"\$\{{?{re.escape(name)}\b", text)
    places = [
        word
        for command in commands(text, {})
        for variable, word in command.assignments
        if variable == name
    ]
    exported = re.search(rf"\bexport[ \t]+(?:[^\n;]*[ \t])?{re.escape(name)}\b", text)
    if len(uses) != 1 or len(places) != 1 or exported or places[0].variables:
        return None
    word: Word = places[0]
    return word.start, word.end


def _inserted(text: str, command: TrainingCommand, name: str, value: Any) -> str:
    written = _words(value, any(_capital(text, one) for one in command.arguments))
    last = command.arguments[-1] if command.arguments else None
    if command.pairs and (last is None or last.joined):
        return _after(text, command, f"{name}={','.join(written)}")
    dashes = [text[one.start : one.end] for one in command.arguments]
    if any("-" in one[2:].split()[0].split("=")[0] for one in dashes if one.startswith("--")):
        name = name.replace("_", "-")
    if last is not None and last.joined and len(written) == 1:
        return _after(text, command, f"--{name}={written[0]}")
    return _after(text, command, f"--{name} {' '.join(written)}")


def _after(text: str, command: TrainingCommand, written: str) -> str:
    """The text with one more argument, on a line of its own where the others have one."""
    place, separator = command.end, " "
    if command.arguments:
        place = max(argument.end for argument in command.arguments)
        last = max(command.arguments, key=lambda argument: argument.start)
        lead = re.compile(r"(?:[ \t]*\\\r?\n[ \t]*)+\Z").search(text, 0, last.start)
        separator = lead[0] if lead else " "
    return text[:place] + separator + written + text[place:]
