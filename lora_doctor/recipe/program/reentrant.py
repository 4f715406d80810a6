"""Reentrant gradient checkpointing in a program that a launcher starts in several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_doctor.recipe.program.launch import Launch, is_certain
from lora_doctor.recipe.program.objects import (
    Settings,
    adds_without_wrapper,
    is_false,
    is_none,
    is_preparation,
    settings_of,
    top,
)
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.installed.training_defaults import (
    checkpoints_reentrantly,
    looks_for_unused_parameters,
)
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Known

_KWARGS = "gradient_checkpointing_kwargs"
#: Arguments by which the Trainer leaves the model to others, or DDP expects the same graph.
_NOT_DDP = ("fsdp", "deepspeed", "ddp_static_graph")


@dataclass(frozen=True)
class ReentrantDdp:
    """Reentrant checkpointing beside DDP that looks for unused parameters."""

    #: Why it is reentrant.
    reentrant: str
    #: Where checkpointing is turned on.
    place: Place
    #: Why DDP looks for unused parameters.
    unused: str
    #: What starts several processes.
    launch: Launch
    #: Whether that is certain: no comment, no file that only lies there, and the only way to start.
    certain: bool


def reentrant_under_ddp(setup: Setup, started: Sequence[Launch]) -> ReentrantDdp | None:
    """The contradiction of a program that a Trainer of transformers trains; ``None`` where there is
    none, or it is not known."""
    trainer, arguments = setup.roles.trainer, settings_of(setup.roles.training)
    if trainer is None or arguments is None or arguments.open is not None or trainer.heir:
        return None
    if top(trainer.name) != "transformers" or setup.roles.wrapper is None:
        return None
    if any(not is_false(arguments.value(name)) for name in _NOT_DDP):
        return None
    reentrant, unused = _reentrant(setup, arguments), _unused(setup, arguments)
    place = setup.recipe.places.get("gradient_checkpointing")
    if not reentrant or not unused or place is None:
        return None
    for launch in started:
        if launch.several and launch.ddp:
            certain = is_certain(launch, started, lambda one: one.processes != 1 and one.ddp)
            return ReentrantDdp(reentrant, place, unused, launch, certain)
    return None


def _reentrant(setup: Setup, arguments: Settings) -> str:
    """Why checkpointing is reentrant; empty where it is off, is not, or that is not known."""
    setting = setup.settings.get("gradient_checkpointing")
    if setting is None or setup.recipe.get("gradient_checkpointing") is not True:
        return ""
    call = setting.call
    by_arguments = call is not None and call is arguments.call
    if not by_arguments and (call is None or not is_preparation(call) or _KWARGS in call.keywords):
        return ""
    given: Any = setup.recipe.get(_KWARGS)
    if given is None and not is_none(arguments.value(_KWARGS)):
        return ""  # given, and not known
    chosen = given.get("use_reentrant") if isinstance(given, dict) else None
    if chosen is not None:
        return f"use_reentrant={chosen}" if chosen else ""
    return "reentrant by default in the installed transformers" if checkpoints_reentrantly() else ""


def _unused(setup: Setup, arguments: Settings) -> str:
    """Why DDP looks for unused parameters; empty where it does not, or that is not known."""
    value = arguments.value("ddp_find_unused_parameters")
    if not is_none(value):
        return "True" if isinstance(value, Known) and value.value is True else ""
    if adds_without_wrapper(setup.roles) is not None or not looks_for_unused_parameters():
        return ""
    return "not set: the installed Trainer sets it for a PEFT model"
