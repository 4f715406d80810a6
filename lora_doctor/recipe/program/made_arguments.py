"""The calls of a program that make arguments of a Trainer, with values that are all known: they can
be made again, apart from the program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lora_doctor.recipe.program.objects import settings_of, top
from lora_doctor.recipe.program.pins import unmet
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import (
    Call,
    Instance,
    NotPlainError,
    ReferenceName,
    Thing,
    Unknown,
    Value,
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


def made_arguments(setup: Setup) -> list[MadeArguments]:
    """The calls, in their order; those whose values the text does not say are left out, and those
    of a package of which the program pins another release."""
    if any(top(call.name) == "unsloth" for call in setup.program.calls):
        return []  # it patches the classes
    pinned = {pin.package.replace("-", "_") for pin, _ in unmet(setup.program)}
    return [one for one in _made(setup) if top(one.name) not in pinned]


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
