"""The calls of a program that make arguments of a Trainer, with values that are all known: they can
be made again, apart from the program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lora_doctor.recipe.program.objects import is_trainer, settings_of, top, uses_unsloth
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import (
    Call,
    Instance,
    Items,
    NotPlainError,
    ReferenceName,
    Thing,
    Unknown,
    Value,
    constant,
    plain,
)

_PACKAGES = ("transformers", "trl", "sentence_transformers")
#: Where something is written, or how it is called: it decides about no other argument.
_ASIDE = re.compile(r".*(?:_dir|_name|_id|_token|seed)|report_to|hub_.*|deepspeed|fsdp.*")


@dataclass(frozen=True)
class MadeArguments:
    """One call, or one object that a parser makes."""

    #: Dotted name of the class.
    name: str
    #: The arguments, as JSON.
    values: dict[str, Any]
    place: Place
    #: Callbacks of transformers of the trainer that takes them: the class, and its arguments.
    callbacks: tuple[tuple[str, dict[str, Any]], ...] = ()


def made_arguments(setup: Setup) -> list[MadeArguments]:
    """The calls, in their order; those whose values the text does not say are left out, and those
    of a package of which the program pins another release."""
    if uses_unsloth(setup.program):
        return []  # it patches the classes
    pinned = pinned_otherwise(setup.program)
    found = [one for one in _made(setup) if top(one.name) not in pinned]
    callbacks = _callbacks_by_place(setup)
    return [replace(one, callbacks=tuple(callbacks.get(one.place, ()))) for one in found]


def _callbacks_by_place(setup: Setup) -> dict[Place, list[tuple[str, dict[str, Any]]]]:
    """Those of each trainer, by where its arguments are made."""
    found: dict[Place, list[tuple[str, dict[str, Any]]]] = {}
    for call in setup.program.calls:
        listed, args = call.value("callbacks"), call.value("args", 1)
        if not (call.certain and is_trainer(call) and isinstance(listed, Items)):
            continue
        if isinstance(args, Thing):
            made = [_callback(item) for item in listed.items]
            found.setdefault(args.call.place, []).extend(one for one in made if one is not None)
    return found


def _callback(value: Value) -> tuple[str, dict[str, Any]] | None:
    """One whose class is transformers' own, with arguments that are all known."""
    call = value.call if isinstance(value, Thing) else None
    if call is None or call.heir is not None or call.positional or call.open is not None:
        return None
    if top(call.name) != "transformers" or not call.name.endswith("Callback") or not call.certain:
        return None
    try:
        return call.name, {name: constant(one.value) for name, one in call.keywords.items()}
    except NotPlainError:
        return None


def _made(setup: Setup) -> Iterator[MadeArguments]:
    seen = set()
    for call in setup.program.calls:
        if not call.certain or call.open is not None or not makes_arguments(call.name):
            continue
        if len(call.positional) > 1 or call.span in seen:
            continue
        seen.add(call.span)
        values = _values(call.result if isinstance(call.result, Thing) else None, call)
        if values is not None:
            yield MadeArguments(call.name, values, call.place)
    training = setup.roles.training
    if isinstance(training, Instance) and training.of is not None and training.span is not None:
        # libcst comes with it, which no run without a program imports.
        from lora_doctor.static.program.objects import library_base

        name = library_base(training.of)
        values = _values(training, None)
        if makes_arguments(name) and values is not None:
            yield MadeArguments(name, values, training.span.place)


def arguments_of(value: Value | None) -> MadeArguments | None:
    """The call that made this value, where it makes arguments with values that are all known."""
    if not isinstance(value, Thing) or not makes_arguments(value.call.name):
        return None
    values = _values(value, value.call) if len(value.call.positional) <= 1 else None
    return None if values is None else MadeArguments(value.call.name, values, value.call.place)


def makes_arguments(name: str) -> bool:
    """Whether a class of this dotted name holds arguments of a Trainer."""
    kind = name.rpartition(".")[2]
    return top(name) in _PACKAGES and (
        kind.endswith("TrainingArguments") or (top(name) == "trl" and kind.endswith("Config"))
    )


def _values(made: Value | None, call: Call | None) -> dict[str, Any] | None:
    """Name to value, as JSON; ``None`` where one that counts is not known."""
    found = settings_of(made if made is not None else (call.result if call else None))
    if found is None or found.open is not None:
        return None
    values: dict[str, Any] = {}
    for name in found.names():
        value = found.value(name)
        if _ASIDE.fullmatch(name):
            continue
        try:
            values[name] = _as_json(plain(value))
        except NotPlainError:
            if isinstance(value, Unknown) and name == "output_dir":
                continue
            return None
    return values


def _as_json(value: Any) -> Any:
    """A plain value; of ``IntervalStrategy.STEPS`` and the like the text that they stand for."""
    if isinstance(value, ReferenceName):
        owner, _, name = value.rpartition(".")
        if not owner.endswith("Strategy"):
            raise NotPlainError(None)
        return name.lower()
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return value
