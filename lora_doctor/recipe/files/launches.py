"""What starts a script, as far as shell files and configs beside it, or its comments, say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.files import json_syntax, yaml_syntax
from lora_doctor.recipe.files.bytes import read_text
from lora_doctor.recipe.files.shell_cut import cuts, of_command, rejoined
from lora_doctor.recipe.files.shell_files import LAUNCHERS, MODULES, script_in, shell_files
from lora_doctor.recipe.files.shell_syntax import Command, commands
from lora_doctor.recipe.program.launch import Launch
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.named_file import named_file
from lora_doctor.static.place import Place
from lora_doctor.static.program.units import Unit
from lora_doctor.text import short_path

#: Configs beside a script that are looked at, and the longest file.
_MOST_FILES = 40
_LONGEST = 200_000
_CONFIGS = (".yaml", ".yml")
_LINE = re.compile(r"\b(?:accelerate\s+launch|torchrun|deepspeed|torch\.distributed\.\w+)\b")


def launches(setup: Setup) -> tuple[Launch, ...]:
    """The ways in which the script is started: the commands of shell files beside it; without any,
    those in its comments; without those, the one config of accelerate beside it."""
    script = setup.program.path
    if script.suffix != ".py":
        return ()
    folder = script.resolve().parent
    return (
        tuple(_of_shell_files(script, folder))
        or tuple(_of_comments(setup.program.units, script, folder))
        or tuple(_of_config(folder))
    )


def _of_shell_files(script: Path, folder: Path) -> Iterator[Launch]:
    for path in shell_files(script):
        try:
            text = read_text(path).text
        except InputError:
            continue
        if len(text) > _LONGEST:
            continue
        found = cuts(text)
        meant = rejoined(text, found)
        for command in commands(meant, {}):
            if not _starts(command, script, path.parent):
                continue
            start, end = command.words[0].start, command.words[-1].end
            place = Place(short_path(str(path)), text.count("\n", 0, start) + 1)
            code = _code(command, meant)
            launch = _launch(command, code, place, True, (path.parent, folder))
            yield replace(launch, cuts=of_command(text, start, end, found))


def _of_comments(units: tuple[Unit, ...], script: Path, folder: Path) -> Iterator[Launch]:
    """The commands in comments and texts of the script itself."""
    for unit in units:
        if not unit.editable:
            continue
        lines = unit.text.split("\n")
        for number, line in enumerate(lines, 1):
            found = _LINE.search(line)
            if not found or len(line) > _LONGEST:
                continue
            text = _continued(lines, number - 1)
            text = text[_LINE.search(text).start() :]  # type: ignore[union-attr]
            for command in commands(text.replace("`", ""), {}):
                if _starts(command, script, folder):
                    yield _launch(command, " ".join(text.split()), Place(unit.file, number), False,
                                  (folder,))  # fmt: skip


def _continued(lines: list[str], start: int) -> str:
    """A commented command on one line: each of its lines but the last ends with a backslash."""
    found = []
    for line in lines[start : start + 20]:
        text = line.strip().lstrip("#").strip()
        found.append(text.removesuffix("\\"))
        if not text.endswith("\\"):
            break
    return " ".join(found)


def _of_config(folder: Path) -> Iterator[Launch]:
    """The config of accelerate beside the script, where there is just one."""
    found = []
    for path in _configs(folder):
        try:
            text = read_text(path).text
        except InputError:
            continue
        if re.search(r"^distributed_type:", text, re.MULTILINE) and "compute_environment" in text:
            config, file = _mapping(path.parent, path.name)
            found += [(config, file)] if config else []
    if len(found) == 1:
        config, file = found[0]
        place = Place(short_path(file), 1)
        yield Launch("accelerate", _processes(config.get("num_processes")), place.file, place,
                     False, config, _deepspeed(config, file))  # fmt: skip


def _configs(folder: Path) -> list[Path]:
    try:
        inside = sorted(path for path in folder.iterdir() if path.suffix.lower() in _CONFIGS)
    except OSError:
        return []
    return [path for path in inside if path.is_file()][:_MOST_FILES]


def _starts(command: Command, script: Path, beside: Path) -> bool:
    """Whether a command runs the script."""
    _, found = script_in(command.words, (beside, *list(beside.resolve().parents)[:2]))
    return found is not None and found.resolve() == script.resolve()


def _launch(
    command: Command, code: str, place: Place, certain: bool, folders: tuple[Path, ...]
) -> Launch:
    launcher, options = _read([word.text for word in command.words])
    config: Mapping[str, Any] = {}
    file = ""
    named = options.get("config_file")
    for folder in folders if launcher == "accelerate" and isinstance(named, str) else ():
        config, file = _mapping(folder, str(named))
        if config:
            break
    return Launch(
        launcher, _asked(launcher, options, config), code, place, certain, config,
        _deepspeed(config, file),
    )  # fmt: skip


def _read(words: list[str | None]) -> tuple[str, dict[str, Any]]:
    """The launcher and its options, up to the script."""
    launcher = ""
    options: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0) or ""
        base = PurePosixPath(word).name
        if word.endswith(".py"):
            break
        if not launcher and (base in LAUNCHERS or word in MODULES):
            launcher = MODULES.get(word, base)
        elif word.startswith("-") and launcher:
            name, joined, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            if joined:
                options[name] = value
            elif not rest or (rest[0] or "").startswith("-") or (rest[0] or "").endswith(".py"):
                options[name] = True  # it stands alone
            else:
                options[name] = rest.pop(0)
    return launcher, options


def _asked(launcher: str, options: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """The number of processes that a launcher starts."""
    if not launcher:
        return 1
    if launcher == "accelerate":
        switches = ("multi_gpu", "use_fsdp", "use_deepspeed")
        alone = str(config.get("distributed_type", "")).upper() == "NO"
        if "cpu" in options or (alone and not any(name in options for name in switches)):
            return 1  # whatever number is asked for
        return _processes(options.get("num_processes", config.get("num_processes")))
    name = "num_gpus" if launcher == "deepspeed" else "nproc_per_node"
    each, nodes = _processes(options.get(name)), _processes(options.get("nnodes", 1))
    if launcher == "torchrun" and name not in options:
        each = 1
    return None if each is None or nodes is None else each * nodes


def _processes(value: Any) -> int | None:
    text = str(value).strip()
    return int(text) if text.isdigit() and len(text) < 6 else None


def _mapping(folder: Path, name: str) -> tuple[Mapping[str, Any], str]:
    """The mapping in a file of this name, and where it lies; empty where there is none."""
    for place in (folder, folder.parent, folder.parent.parent):
        path = named_file(name, (place,))
        try:
            if path is None or path.stat().st_size > _LONGEST:
                continue
            syntax = json_syntax if path.suffix.lower() == ".json" else yaml_syntax
            found = syntax.parse(read_text(path).text, path)
        except (InputError, OSError):
            continue
        return found, str(path)
    return {}, ""


def _deepspeed(config: Mapping[str, Any], file: str) -> Mapping[str, Any]:
    """DeepSpeed's config that accelerate's names."""
    part = config.get("deepspeed_config")
    named = part.get("deepspeed_config_file") if isinstance(part, Mapping) else None
    return _mapping(Path(file).parent, named)[0] if isinstance(named, str) else {}


def _code(command: Command, text: str) -> str:
    """The command on one line."""
    written = text[command.words[0].start : command.words[-1].end].replace("\\\n", " ")
    try:
        words = shlex.split(written)
    except ValueError:
        words = written.split()
    return " ".join(words)
