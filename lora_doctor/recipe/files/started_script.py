"""The training script that a shell file starts: ``torchrun ... train.py --lora_r 8``,
``python -m package.train``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lora_doctor.errors import InputError
from lora_doctor.recipe.files.bytes import decode, read_bytes
from lora_doctor.recipe.files.shell_cut import rejoined
from lora_doctor.recipe.files.shell_edit import assignment
from lora_doctor.recipe.files.shell_files import script_in, shell_files
from lora_doctor.recipe.files.shell_syntax import SHELLS, Command, Word, commands
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.started import PlacedWord, Start
from lora_doctor.static.program.units import Span, Unit
from lora_doctor.text import short_path

#: Folders above a shell file from which it may be started.
_ABOVE = 4
#: ``--name=$VALUE``: all behind the sign is one variable.
_JOINED = re.compile(r"-{1,2}[\w-]+=(\"?)\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})\1")
#: Characters of a shell file that is only looked at for what starts a script.
_LONGEST = 200_000


@dataclass(frozen=True)
class StartedScript:
    """A script and the command that starts it. ``arguments``: its own words, with their places."""

    script: Path
    arguments: tuple[str, ...]
    start: Start


def started_script(path: Path, data: bytes | None = None) -> StartedScript | None:
    """The one script of the user's that a shell file starts and that sets up a training; the only
    one that it starts, where none does. ``None`` for every other file. ``data``: its content
    instead of what is there.

    Raises:
        InputError: the file cannot be read, or it starts several trainings.
    """
    if path.suffix.lower() not in SHELLS:
        return None
    found = list(_starts(path, data))
    training = [one for one in found if sets_up(one)]
    if len(training) > 1:
        lines = ", ".join(str(one.start.place.line) for one in training)
        raise InputError(
            f"{path}: starts {len(training)} trainings (lines {lines}); keep each in a file of its "
            f"own, or give the script: lora-doctor check {training[0].script} -- --NAME VALUE"
        )
    return next(iter(training or found), None) if training or len(found) == 1 else None


def only_start_of(script: Path) -> StartedScript | None:
    """The command that starts a script, where it is the only one in the shell files beside it."""
    found = []
    for path in shell_files(script):
        try:
            starts = list(_starts(path, None, script.name))
        except InputError:
            continue
        found += [one for one in starts if one.script.resolve() == script.resolve()]
    return found[0] if len(found) == 1 else None


def sets_up(found: StartedScript) -> bool:
    """Whether the script says which adapter is trained."""
    try:
        return read_setup(found.script, None, found.arguments, found.start).has_recipe
    except InputError:
        return True  # which reading it again says


def _starts(path: Path, data: bytes | None, name: str = "") -> Iterator[StartedScript]:
    """The scripts that are there and that the commands of a shell file start. ``name``: of a script
    that has to be named in it."""
    data = read_bytes(path) if data is None else data
    text = decode(path, data).text
    if name and (name.removesuffix(".py") not in text or len(text) > _LONGEST):
        return
    unit = Unit(short_path(str(path)), text, editable=False)
    environment: dict[str, str | None] = {}
    folders = [Path(), *list(path.resolve().parents)[:_ABOVE]]
    for command in commands(rejoined(text), os.environ):
        here = {name: word.text for name, word in command.assignments}
        if not command.words:
            environment.update(here)
        elif command.words[0].text == "cd" and len(command.words) == 2:
            folders += [folder / (command.words[1].text or "") for folder in folders]
            folders = folders[:40]
        else:
            one = _started(command, unit, folders, {**environment, **here})
            if one is not None:
                start = replace(one.start, data=data, reread=partial(_again, path, one.script))
                yield replace(one, start=start)


def _again(path: Path, script: Path, data: bytes) -> tuple[tuple[str, ...], Start] | None:
    """How the script is started by this content of the shell file."""
    found = [one for one in _starts(path, data) if one.script == script]
    return (found[0].arguments, found[0].start) if len(found) == 1 else None


def _started(
    command: Command, unit: Unit, folders: Sequence[Path], environment: Mapping[str, str | None]
) -> StartedScript | None:
    words = command.words
    number, script = script_in(words, folders)
    if script is None:
        return None
    place = unit.place_at(words[0].start)
    known = tuple((name, text) for name, text in environment.items() if text is not None)
    unknown = tuple(name for name, text in environment.items() if text is None)
    start = Start(Place(place.file, place.line), known, unknown)
    given = tuple(one for word in words[number + 1 :] for one in _placed(word, unit))
    return StartedScript(Path(short_path(str(script))), given, start)


def _placed(word: Word, unit: Unit) -> list[PlacedWord]:
    """The word with its place; the words of a variable that stands there without quotes."""
    span = Span(unit, word.start, word.end)
    if word.text is None:
        names = [name for name in word.variables if name.isidentifier()]
        return [PlacedWord(span.text, span, names[0] if names else span.text)]
    place = assignment(unit.text, word.variables[0]) if word.is_variable else None
    span = Span(unit, *place) if place is not None else span
    if word.is_variable and unit.text[word.start] == "$":
        texts = list(re.finditer(r"[^\s\"']+", span.text))
        if [one[0] for one in texts] == word.text.split():
            return [PlacedWord(one[0], _part(span, one)) for one in texts]
        whole = Span(unit, word.start, word.end)
        return [PlacedWord(text, whole) for text in word.text.split()]
    set_at = _assigned(word, unit) if _JOINED.fullmatch(span.text) else None
    return [PlacedWord(word.text, span, set_at=set_at)]


def _assigned(word: Word, unit: Unit) -> Span | None:
    """Where the variable of ``--name=$VALUE`` is set; ``None`` where it is set elsewhere, or used
    elsewhere as well."""
    place = assignment(unit.text, word.variables[0])
    return Span(unit, *place) if place is not None else None


def _part(span: Span, found: re.Match[str]) -> Span:
    return Span(span.unit, span.start + found.start(), span.start + found.end())
