"""The training command of a shell script: which framework, which files, and its arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from lora_doctor.recipe.files.shell_syntax import Command, Word

#: Programs that start another with options of their own before it.
_LAUNCHERS = ("accelerate", "torchrun", "deepspeed", "python", "python3", "nohup", "uv", "srun")
_SUFFIXES = (".yaml", ".yml", ".json")
_OPTION = re.compile(r"--?([A-Za-z][\w.-]*)(=)?")
_PAIR = re.compile(r"([A-Za-z_][\w.]*)=")
#: Options of launchers that have no value.
_FLAGS = frozenset(
    {"multi_gpu", "use_deepspeed", "use_fsdp", "cpu", "standalone", "no_python", "tpu", "m", "u"}
)
#: What is no name of a program of ours: it is asked for by the name of the framework.
_COMMANDS = {
    "llamafactory-cli": "LLaMA-Factory", "lmf": "LLaMA-Factory", "llamafactory": "LLaMA-Factory",
    "axolotl": "axolotl", "trl": "TRL", "swift": "ms-swift", "megatron": "",
}  # fmt: skip
_ACTIONS = frozenset(
    {"train", "sft", "pt", "rlhf", "dpo", "kto", "grpo", "reward", "rloo", "pretrain", "preprocess"}
)


@dataclass(frozen=True)
class Argument:
    """One argument of the command line."""

    name: str
    #: A text, a list of texts, ``True`` for an option without a value, or ``None`` where a
    #: variable has no value that is known.
    value: Any
    #: From its name to behind its last value.
    start: int
    end: int
    #: The words of the value; of ``name=value`` the part behind the sign.
    words: tuple[Word, ...] = ()
    #: ``--name=value`` or ``name=value``.
    joined: bool = False


@dataclass(frozen=True)
class TrainingCommand:
    """A command that trains."""

    #: The format's name, empty where only the arguments tell.
    format: str
    arguments: tuple[Argument, ...]
    #: The file of the framework that it names.
    config: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: str = ""
    launcher_options: Mapping[str, Any] = field(default_factory=dict)
    start: int = 0
    end: int = 0
    #: Whether its arguments are written ``name=value`` (OmegaConf).
    pairs: bool = False


def training_commands(found: Iterable[Command]) -> list[TrainingCommand]:
    """The commands that train with a framework, in their order."""
    environment: dict[str, str] = {}
    result = []
    for command in found:
        set_here = {name: word.text for name, word in command.assignments if word.text is not None}
        if not command.words:
            environment.update(set_here)
            continue
        training = _training(command, {**environment, **set_here})
        if training is not None:
            result.append(training)
    return result


def _training(command: Command, environment: Mapping[str, str]) -> TrainingCommand | None:
    words = list(command.words)
    launcher, options, rest = _launched(words)
    if not rest:
        return None
    program, rest = rest[0], rest[1:]
    format = _format_of(program.text or "")
    if format is None:
        return None
    while rest and rest[0].text in _ACTIONS:
        rest = rest[1:]
    config, arguments, pairs = _arguments(rest)
    if not (format or arguments):
        return None
    return TrainingCommand(
        format, tuple(arguments), config, environment, launcher, options,
        words[0].start, words[-1].end, pairs,
    )  # fmt: skip


def _launched(words: Sequence[Word]) -> tuple[str, dict[str, Any], list[Word]]:
    """What starts the program, its options, and the words from the program on."""
    launcher = ""
    options: dict[str, Any] = {}
    rest = list(words)
    while rest and _base(rest[0]) in _LAUNCHERS:
        name = _base(rest.pop(0))
        launcher = launcher if name in ("python", "python3", "nohup", "uv", "srun") else name
        while rest and (rest[0].text or "").lower() in ("launch", "run"):
            rest.pop(0)
        while rest and (match := _OPTION.match(rest[0].text or "")):
            word = rest.pop(0).text or ""
            key = match[1].replace("-", "_")
            if match[2]:
                options[key] = word.partition("=")[2]
            elif key not in _FLAGS and rest and not (rest[0].text or "-").startswith("-"):
                options[key] = rest.pop(0).text
            else:
                options[key] = True
    return launcher, options, rest


def _base(word: Word) -> str:
    return PurePosixPath(word.text or "").name


def _format_of(program: str) -> str | None:
    """The framework of a program; empty where its arguments have to tell, ``None`` where it is
    nothing that trains."""
    name = PurePosixPath(program).name
    if name in _COMMANDS:
        return _COMMANDS[name] or None
    if program.startswith("axolotl.cli"):
        return "axolotl"
    if program.startswith("trl.scripts") or "/trl/scripts/" in program:
        return "TRL"
    if program.startswith(("swift.cli", "swift/cli")):
        return "ms-swift"
    if program.startswith("llamafactory"):
        return "LLaMA-Factory"
    return "" if name.endswith(".py") else None


def _arguments(words: Sequence[Word]) -> tuple[str, list[Argument], bool]:
    config, pairs = "", False
    arguments: list[Argument] = []
    position = 0
    while position < len(words):
        word = words[position]
        text = word.text or ""
        option = _OPTION.match(text)
        position += 1
        if option is not None:
            argument, position = _option(option, words, position)
            if argument.name == "config" and isinstance(argument.value, str):
                config = argument.value
            else:
                arguments.append(argument)
        elif text.endswith(_SUFFIXES) and not config and "=" not in text:
            config = text
        elif pair := _PAIR.match(text):
            pairs = True
            inner = Word(text[pair.end() :], word.start + pair.end(), word.end, word.variables)
            arguments.append(
                Argument(pair[1], inner.text, word.start, word.end, (inner,), joined=True)
            )
    return config, arguments, pairs


def _option(option: re.Match[str], words: Sequence[Word], position: int) -> tuple[Argument, int]:
    """An option with the words that belong to it, and where the next one begins."""
    word = words[position - 1]
    name = option[1].replace("-", "_")
    if option[2]:
        text = (word.text or "")[option.end() :]
        inner = Word(text, word.start + option.end(), word.end, word.variables)
        return Argument(name, text, word.start, word.end, (inner,), joined=True), position
    values: list[Word] = []
    while position < len(words) and not _begins_option(words[position]):
        values.append(words[position])
        position += 1
    texts = [value.text for value in values]
    result: Any = True
    if texts:
        result = texts[0] if len(texts) == 1 else texts
        if None in texts:
            result = None
    end = values[-1].end if values else word.end
    return Argument(name, result, word.start, end, tuple(values)), position


def _begins_option(word: Word) -> bool:
    return bool(re.match(r"--?[A-Za-z]", word.text or ""))
