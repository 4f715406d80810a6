"""The numbers, texts and switches that a program hands to a config of PEFT or to the arguments of a
Trainer, each by itself: one that is not known says nothing about the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lora_doctor.recipe.program.made_arguments import makes_arguments
from lora_doctor.recipe.program.objects import Settings, settings_of, top, uses_unsloth
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Known, Thing


@dataclass(frozen=True)
class PlainValue:
    """One argument, or one attribute that is set afterwards."""

    #: Dotted name of the class that it is handed to.
    name: str
    key: str
    #: A number, text, switch, or ``None``.
    value: Any
    place: Place


def plain_values(setup: Setup) -> list[PlainValue]:
    """In the order of the program; without those for a package of which it pins another release,
    and for classes that Unsloth patches."""
    if uses_unsloth(setup.program):
        return []
    pinned = pinned_otherwise(setup.program)
    return [one for one in _all(setup) if top(one.name) not in pinned]


def _all(setup: Setup) -> Iterator[PlainValue]:
    seen = set()
    for call in setup.program.calls:
        if call.certain and call.span not in seen and _is_asked(call):
            seen.add(call.span)
            found = settings_of(call.result if isinstance(call.result, Thing) else None)
            if found is not None:
                yield from _of(call, found)


def _is_asked(call: Call) -> bool:
    own = top(call.name) == "peft" and call.name.rpartition(".")[2].endswith("Config")
    return own or makes_arguments(call.name)


def _of(call: Call, found: Settings) -> Iterator[PlainValue]:
    for key in found.names():
        value = found.value(key)
        if not isinstance(value, Known) or isinstance(value.value, (list, tuple, dict)):
            continue
        if value.value is None or type(value.value) in (str, int, float, bool):
            argument = None if key in found.attributes else found.arguments.get(key)
            span = value.span or (argument.span if argument is not None else call.span)
            yield PlainValue(call.name, key, value.value, span.place)
