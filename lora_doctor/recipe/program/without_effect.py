"""What a program writes that has no effect: a context that is not entered, the config of an adapter
that nobody gets, weights whose names fit nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.objects import (
    is_adding,
    is_loader,
    is_saved_adapter,
    is_trainer,
    is_wrap,
    top,
    uses_unsloth,
)
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.value_types import type_of
from lora_doctor.static.place import Place
from lora_doctor.static.program.program import Program
from lora_doctor.static.program.values import Call, Items, Mapping, Thing, Value

_BOUND = re.compile(r"(\w+)\s*(?::[^=]+)?=(?!=)\s*")


@dataclass(frozen=True)
class WithoutEffect:
    """Such a call. ``code``: what is called."""

    code: str
    place: Place


def contexts_not_entered(setup: Setup) -> Iterator[WithoutEffect]:
    """Calls of context managers that stand alone as a statement."""
    pinned = pinned_otherwise(setup.program)
    for call in setup.program.calls:
        alone = call.statement is not None and call.statement.text.strip() == call.span.text.strip()
        if not alone or not call.certain or top(call.name) in pinned or call.receiver is None:
            continue
        found = type_of(call.result)
        if found is not None and found.is_context and found.made is call:
            yield WithoutEffect(call.method, call.place)


def unused_adapter_configs(setup: Setup) -> Iterator[WithoutEffect]:
    """The config of an adapter, bound to a name that nothing reads, in a program that trains and
    puts no adapter on anything."""
    program = setup.program
    calls = program.calls
    if uses_unsloth(program) or not any(_trains(call) for call in calls):
        return
    adapts = (is_wrap, is_saved_adapter, is_adding)
    if any(one(call) for call in calls for one in adapts):
        return
    if any(call.method in ("inject_adapter_in_model", "get_peft_model") for call in calls):
        return
    if not any(is_loader(call) for call in calls):
        return
    for call in calls:
        made = top(call.name) == "peft" and call.method.endswith("Config") and call.certain
        if made and call.receiver is None and not _is_used(program, call):
            yield WithoutEffect(call.method, call.place)


def _trains(call: Call) -> bool:
    return is_trainer(call) or call.method in ("backward", "fit")


def _is_used(program: Program, made: Call) -> bool:
    """Whether something may read the object: it is given away, or its name occurs."""
    bound = _BOUND.match(made.statement.text) if made.statement is not None else None
    if bound is None or program.reads is None or program.reads.get(bound[1], 0):
        return True
    inside = made.statement is not None and made.statement.text[bound.end() :].strip()
    return inside != made.span.text.strip() or any(
        _holds(argument.value, made)
        for call in program.calls
        for argument in (*call.positional, *call.keywords.values())
    )


def _holds(value: Value, made: Call) -> bool:
    if isinstance(value, Thing):
        return value.call is made
    if isinstance(value, Items):
        return any(_holds(one, made) for one in value.items)
    return isinstance(value, Mapping) and any(_holds(one, made) for one in value.entries.values())
