"""What a program writes that has no effect: a context that is not entered, the config of an adapter
that nobody gets, weights whose names fit nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.program.objects import (
    is_adding,
    is_loader,
    is_saved_adapter,
    is_trainer,
    is_wrap,
    text_of,
    top,
    uses_unsloth,
)
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.value_types import PEFT_MODEL, type_of
from lora_doctor.static.pickled_weights import read_pickled
from lora_doctor.static.place import Place
from lora_doctor.static.program.program import Program
from lora_doctor.static.program.values import Call, Items, Known, Mapping, Thing, Value
from lora_doctor.static.weights import read_header

_BOUND = re.compile(r"(\w+)\s*(?::[^=]+)?=(?!=)\s*")


@dataclass(frozen=True)
class WithoutEffect:
    """Such a call."""

    #: What is called.
    code: str
    #: Where.
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


@dataclass(frozen=True)
class LostState:
    """A file of weights of which no name fits the model."""

    #: The file, as the program names it.
    file: str
    #: The first of its names.
    first: str
    #: Where it is loaded into the model.
    place: Place


#: How PEFT saves the weights of an adapter: without the name that they have in the model.
_SAVED_LORA = re.compile(r"\.lora_\w+?(?:\.weight)?$")
_READERS = ("torch.load", "safetensors.torch.load_file")


def states_that_fit_nothing(setup: Setup) -> Iterator[LostState]:
    """``load_state_dict(…, strict=False)`` of a PEFT model, with a file beside the program that has
    the names of the base model, or those under which PEFT saves."""
    for call in setup.program.calls:
        strict = call.value("strict", 1)
        if call.method != "load_state_dict" or not call.certain or call.guarded:
            continue
        owner = type_of(call.receiver)
        loose = isinstance(strict, Known) and strict.value is False
        if owner is None or owner.of != PEFT_MODEL or not loose or not owner.made.certain:
            continue
        state = call.value("state_dict", 0)
        made = state.call if isinstance(state, Thing) and not state.attributes else None
        name = text_of(made.value("f", 0) or made.value("filename")) if made else None
        if made is None or made.name not in _READERS or name is None:
            continue
        names = _names_in(setup.program.path.parent / name)
        if names and not any(map(_may_fit, names)):
            yield LostState(name, names[0], call.place)


def _may_fit(name: str) -> bool:
    return name.startswith("base_model.") and _SAVED_LORA.search(name) is None


def _names_in(path: Path) -> list[str]:
    """The names of the tensors in a file; empty where it is not here, or not plainly read."""
    if not path.is_file():
        return []
    try:
        if path.suffix == ".safetensors":
            return list(read_header(path)[0])
        return list(read_pickled(path).tensors)
    except EvidenceError:
        return []
