"""Trainers of a program that are to evaluate and are given nothing to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.objects import Settings, is_none, is_trainer, settings_of, top
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Known, Reference, Value

_NAMES = ("eval_strategy", "evaluation_strategy")
#: Position of ``eval_dataset`` among the arguments of transformers' ``Trainer``.
_POSITION = 4


@dataclass(frozen=True)
class Evaluation:
    """A trainer that evaluates without data."""

    #: The class of the trainer, and where it is made.
    trainer: str
    trainer_place: Place
    #: The argument that asks for evaluation, its value, and where it stands.
    name: str
    strategy: str
    place: Place


def evaluations_without_data(setup: Setup) -> Iterator[Evaluation]:
    """The trainers, in their order; a class of the user's own is none of these."""
    for call in setup.program.calls:
        if not is_of_a_library(call) or not call.certain or call.open is not None:
            continue
        if len(call.positional) > _POSITION or not is_none(call.value("eval_dataset")):
            continue
        arguments = settings_of(call.value("args", 1))
        for name in _NAMES if arguments is not None else ():
            assert arguments is not None
            argument = arguments.arguments.get(name)
            strategy = _strategy(arguments.value(name))
            if argument is not None and strategy not in ("", "no"):
                place = argument.whole.place
                yield Evaluation(call.method, call.place, name, strategy, place)


def is_of_a_library(call: Call) -> bool:
    """Whether it is a trainer of transformers or TRL itself, not of a class that inherits one."""
    return is_trainer(call) and top(call.name) in ("transformers", "trl") and makes_itself(call)


def makes_itself(call: Call) -> bool:
    """Whether the class is written where it is made: one that inherits it has another name."""
    if call.node is None:
        return False
    return call.span.text.partition("(")[0].rpartition(".")[2].strip() == call.method


def asked_strategy(arguments: Settings) -> str:
    """When a trainer is to evaluate; empty where it is not, or that is not known."""
    found = (_strategy(arguments.value(name)) for name in _NAMES)
    return next((one for one in found if one not in ("", "no")), "")


def _strategy(value: Value | None) -> str:
    """``steps`` or ``epoch``; empty where nothing is asked for, or it is not known."""
    if isinstance(value, Known) and isinstance(value.value, str):
        return value.value
    if isinstance(value, Reference) and "Strategy." in value.name:
        return value.name.rpartition(".")[2].lower()
    return ""
