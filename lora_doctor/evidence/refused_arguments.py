"""The Trainer's arguments made by their own class, and a set-up read by its framework's own parser:
what they refuse, said by themselves.

Runs in a child process. What only this machine or its packages lack is no refusal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import io
import json
import re
import tempfile
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from lora_doctor.results.refused_arguments import AskedArguments, Refusal

#: Of the machine, of how the command is started, or of a package: nothing that the values decide.
NOT_THEIRS = re.compile(
    r"cuda|\bgpus?\b|\bnpus?\b|\bxpu\b|\bmps\b|\bmlu\b|ampere|\bdevices?\b|distributed|launch|install"
    r"|unexpected keyword|offline|connect|FORCE_TORCHRUN|already exists|not (?:a )?directory",
    re.IGNORECASE,
)
#: What needs several processes or a package before it can be looked at.
_LEFT_OUT = ("deepspeed", "fsdp", "fsdp_config", "local_rank", "report_to", "output_dir", "config",
             "env", "ENV", "push_to_hub", "ray_run_name")  # fmt: skip
#: A number of processes that most sizes divide.
_PROCESSES = 720_720
Entries = Mapping[str, Any]


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    calls: Sequence[Mapping[str, Any]],
    framework: str,
    entries: Entries,
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """An :class:`AskedArguments` as JSON.

    Args:
        source, recipe, patches: as every task has them; not used.
        calls: ``{"name", "values", "callbacks"}`` of each call of a program that makes arguments.
        framework: the framework's name on PyPI; empty without a set-up.
        entries: those of its set-up.
    """
    refusals: list[Refusal] = []
    asked = 0
    with tempfile.TemporaryDirectory(prefix="lora-doctor-") as folder:
        for number, call in enumerate(calls):
            cls = class_of(call["name"])
            if cls is None or not set(call["values"]) <= _fields(cls):
                continue
            asked += 1
            values = {**call["values"], **here(cls, folder)}
            found = [*_refusals(number, cls.__name__, call["name"], lambda: cls(**values))]  # noqa: B023
            if not found:
                found = [*_of_callbacks(number, cls(**values), call["callbacks"])]
            refusals += found
        parse = _PARSERS.get(framework)
        if parse is not None:
            asked += 1
            by = framework
            refusals += _refusals(-1, by, framework, lambda: parse(dict(entries), folder))
    return dataclasses.asdict(AskedArguments(tuple(refusals), asked))


def _refusals(number: int, by: str, name: str, make: Callable[[], object]) -> Iterator[Refusal]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            make()
    except ImportError:
        return
    except SystemExit:  # argparse has said why
        kind, message = "error", said.getvalue().rpartition("error: ")[2]
    except Exception as error:  # noqa: BLE001 - whatever the library raises is its answer
        if _is_ours(error):
            return
        kind, message = type(error).__name__, text_of(error)
    else:
        return
    message = " ".join(message.split())
    if message and not NOT_THEIRS.search(message) and not _runs_on_more_processes(make):
        yield Refusal(number, by, release(name.partition(".")[0]), kind, message[:400])


def _of_callbacks(
    number: int, made: object, callbacks: Sequence[tuple[str, Mapping[str, Any]]]
) -> Iterator[Refusal]:
    """What the library's own callbacks say of the arguments when training begins."""
    transformers = importlib.import_module("transformers")
    for name, values in callbacks:
        kind = name.rpartition(".")[2]
        owner = getattr(transformers, kind, None)
        if owner is None:
            continue

        def begin(owner: Any = owner, values: Mapping[str, Any] = values) -> None:
            state, control = transformers.TrainerState(), transformers.TrainerControl()
            owner(**values).on_train_begin(made, state, control)

        yield from _refusals(number, kind, name, begin)


def _is_ours(error: Exception) -> bool:
    """Whether a release of the library lacks what is called here: nothing was refused then."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename == __file__ and not isinstance(error, ValueError)


def _runs_on_more_processes(make: Callable[[], object]) -> bool:
    """Whether the values are taken where more processes train: TRL compares the batch of all of
    them with the generations for each prompt, and how many they are the values do not say."""
    try:
        owner = importlib.import_module("transformers").TrainingArguments
        with (
            mock.patch.object(owner, "world_size", _PROCESSES),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            make()
    except (Exception, SystemExit):  # noqa: BLE001 - refused there as well
        return False
    return True


def text_of(error: Exception) -> str:
    """What it says; of pydantic's errors each with its key, without the values that it quotes."""
    errors = getattr(error, "errors", None)
    if not callable(errors):
        return str(error)
    said = []
    for one in errors():
        where = ".".join(str(part) for part in one.get("loc", ()))
        said.append(f"{where}: {one['msg']}" if where else str(one["msg"]))
    return "; ".join(said)


def release(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package.replace('_', '-'))}"
    except importlib.metadata.PackageNotFoundError:
        return package


def class_of(name: str) -> Any:
    """The class of a dotted name; ``None`` where it is not there."""
    try:
        found = named(name)
    except Exception:  # noqa: BLE001 - a package that does not import says so elsewhere
        return None
    return found if dataclasses.is_dataclass(found) else None


def named(name: str) -> Any:
    """What a dotted name stands for: in its module, or as its package offers it as well.

    Raises:
        Exception: as the import does, or AttributeError.
    """
    module, _, kind = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError):
        return getattr(importlib.import_module(name.partition(".")[0]), kind)


def _fields(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls) if field.init}


def here(cls: Any, folder: str) -> dict[str, Any]:
    """What lets the class be made on this machine, and writes nothing of the user's."""
    fields = _fields(cls)
    found: dict[str, Any] = {"output_dir": folder}
    found["use_cpu" if "use_cpu" in fields else "no_cuda"] = True
    return {name: value for name, value in found.items() if name in fields}


# --- frameworks ----------------------------------------------------------------------------------


def _by_llamafactory(entries: dict[str, Any], folder: str) -> None:
    try:
        parser = importlib.import_module("llamafactory.hparams.parser")
    except ImportError:
        _by_classes(entries, folder, ("transformers.Seq2SeqTrainingArguments",))
        return
    given = {name: value for name, value in entries.items() if name not in _LEFT_OUT}
    given.update(output_dir=folder, use_cpu=True, report_to="none")
    values = given.values()
    of_a_command_line = all(value is True or isinstance(value, (str, list)) for value in values)
    parsed = parser.get_train_args(_as_words(given) if of_a_command_line else given)
    _check_choices(given, [type(part) for part in parsed])


def _check_choices(given: Entries, classes: Sequence[Any]) -> None:
    """Raises ValueError for a value that is none of those which its class names: from a file it is
    compared with them only where it is used."""
    for cls in classes:
        try:
            kinds = typing.get_type_hints(cls)
        except NameError:  # a name that only type checkers import
            continue
        for name, kind in kinds.items():
            choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
            if choices and name in given and given[name] not in choices:
                raise ValueError(
                    f"{name}: {given[name]!r} is none of {', '.join(map(str, choices))}"
                )


def _by_axolotl(entries: dict[str, Any], folder: str) -> None:
    schemas = importlib.import_module("axolotl.utils.schemas.config")
    left_out = ("plugins", *_LEFT_OUT)
    given = {name: value for name, value in entries.items() if name not in left_out}
    schemas.AxolotlInputConfig(**{**given, "output_dir": folder})


#: The trainers of TRL: the one whose arguments have all entries is meant.
_OF_TRL = ("SFTConfig", "DPOConfig", "GRPOConfig", "RewardConfig", "KTOConfig", "RLOOConfig")


def _by_trl(entries: dict[str, Any], folder: str) -> None:
    kinds = [f"trl.{name}" for name in _OF_TRL if class_of(f"trl.{name}") is not None]
    others = tuple(f"trl.{name}" for name in ("ModelConfig", "ScriptArguments"))
    if not kinds:
        _by_classes(entries, folder, ("transformers.TrainingArguments",))
        return
    names = set(entries)
    meant = max(kinds, key=lambda kind: len(names & _fields(class_of(kind))))
    _by_classes(entries, folder, (meant, *(one for one in others if class_of(one))))


def _by_swift(entries: dict[str, Any], folder: str) -> None:
    """The arguments alone: what ms-swift makes of them fetches the model."""
    arguments = importlib.import_module("swift.arguments").SftArguments
    parsed = dataclasses.make_dataclass(
        "Parsed", [], bases=(arguments,), namespace={"__post_init__": lambda self: None}
    )
    _parsed(entries, folder, [parsed])


_PARSERS: Mapping[str, Callable[[dict[str, Any], str], None]] = {
    "llamafactory": _by_llamafactory, "axolotl": _by_axolotl, "trl": _by_trl,
    "ms-swift": _by_swift,
}  # fmt: skip


def _by_classes(entries: dict[str, Any], folder: str, names: Sequence[str]) -> None:
    """The entries that are arguments of these classes, read as a command line of transformers'."""
    classes = [class_of(name) for name in names]
    if None in classes:
        raise ImportError(names)
    _parsed(entries, folder, classes)


def _parsed(entries: dict[str, Any], folder: str, classes: Sequence[Any]) -> None:
    known = set().union(*map(_fields, classes))
    needed = [field for cls in classes for field in dataclasses.fields(cls) if _is_needed(field)]
    given = {name: value for name, value in entries.items() if name in known}
    for name in _LEFT_OUT:
        given.pop(name, None)
    for field in needed:
        given.setdefault(field.name, "none")
    for cls in classes:
        given.update(here(cls, folder))
    words = _as_words(given)
    parser = importlib.import_module("transformers").HfArgumentParser(classes)
    parser.parse_args_into_dataclasses(words, return_remaining_strings=True)


def _as_words(given: Entries) -> list[str]:
    """The entries as a command line."""
    words: list[str] = []
    for name, value in given.items():
        if value is None or value == []:  # a file may give an empty list, a command line cannot
            continue
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:  # one word, as the value may begin with a dash
            words.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return words


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.init and field.default is missing and field.default_factory is missing
