"""What a program's own training loops lose: losses without gradients, gradients cleared too early
or never, a model that stays in evaluation mode."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.errors import NotPythonError
from lora_doctor.limits import SCRIPT, bounded
from lora_doctor.recipe.program.objects import is_loader, is_saved_adapter, top
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.units import Unit
from lora_doctor.static.program.values import Known
from lora_doctor.static.python_source import parse_python
from lora_doctor.static.script.cleared_gradients import Cleared, cleared_gradients
from lora_doctor.static.script.eval_mode import LeftInEval, left_in_eval
from lora_doctor.static.script.kept_gradients import (
    Discarded,
    NeverReset,
    discarded,
    never_reset,
)
from lora_doctor.static.script.lost_losses import LostLoss, lost_losses

_BACKWARD = re.compile(r"\.(?:manual_)?backward\(")
_TRAIN = re.compile(
    r"\.train\(|\.training\s*=|\.for_training\(|\b(?:set|put|switch)\w*train\w*\(|\btrain\w*mode\("
)
#: Who puts a model into training mode by themselves.
_OTHERS = ("lightning", "pytorch_lightning", "deepspeed", "unsloth", "colossalai", "trl")


@dataclass(frozen=True)
class EvalMode:
    """A model that is trained in evaluation mode."""

    #: Where ``backward()`` is called, or ``eval()`` in the loop.
    place: Place
    #: What stands there.
    code: str
    #: Where the model gets into evaluation mode, and what stands there.
    since: Place
    since_code: str
    #: Whether it was in training mode before.
    later: bool = False


def losses_without_gradients(setup: Setup) -> Iterator[tuple[Place, LostLoss, Place]]:
    """Each loss that is trained on without gradients, with its place and that of the reason."""
    for unit, tree in _trees(setup):
        for one in lost_losses(tree):
            yield _place(unit, one.line), one, _place(unit, one.why.line)


def gradients_cleared(setup: Setup) -> Iterator[tuple[Place, Cleared, Place]]:
    """Each ``zero_grad()`` between ``backward()`` and ``step()``, and the place of the step."""
    if not any(_BACKWARD.search(unit.python) for unit in setup.program.units):
        return
    for unit, tree in _trees(setup):
        for one in cleared_gradients(tree):
            yield _place(unit, one.line), one, _place(unit, one.step_line)


def gradients_never_reset(setup: Setup) -> tuple[Place, NeverReset, Place] | None:
    """A training loop of the program's own in which nothing resets the gradients."""
    if setup.roles.trainer is not None or _others_train(setup):
        return None
    text = "\n".join(unit.python for unit in setup.program.units)
    libraries = frozenset(top(one.module) for one in setup.program.imports)
    for unit, tree in _trees(setup):
        for one in never_reset(tree, text, libraries):
            return _place(unit, one.line), one, _place(unit, one.step_line)
    return None


def gradients_discarded(setup: Setup) -> Iterator[tuple[Place, Discarded, Place]]:
    """Each ``zero_grad()`` by which accumulated gradients are lost, and the place of what
    accumulates."""
    if _others_train(setup):
        return
    for unit, tree in _trees(setup):
        for one in discarded(tree):
            if not one.by_accelerate or _accumulates(setup):
                yield _place(unit, one.line), one, _place(unit, one.since_line)


def _accumulates(setup: Setup) -> bool:
    """Whether accelerate is told to accumulate more than one micro-batch, without DeepSpeed, which
    does that itself."""
    made = [call for call in setup.program.calls if call.name == "accelerate.Accelerator"]
    steps = [call.value("gradient_accumulation_steps") for call in made]
    return (
        len(made) == 1
        and all(
            isinstance(one, Known) and isinstance(one.value, int) and one.value > 1 for one in steps
        )
        and "deepspeed_plugin" not in made[0].keywords
    )


def _others_train(setup: Setup) -> bool:
    return any(top(one.module) in _OTHERS for one in setup.program.imports)


def trained_in_eval_mode(setup: Setup) -> EvalMode | None:
    """The model of a loop that never calls ``train()``, or not after the ``eval()`` in it;
    ``None`` where a trainer does, or that is not known."""
    loader = setup.roles.loader
    if loader is None or setup.roles.trainer is not None or not loader.certain:
        return None
    if _others_train(setup):
        return None
    if not (is_loader(loader) and top(loader.name) == "transformers") and not is_saved_adapter(
        loader
    ):
        return None
    units = setup.program.units
    if any(_TRAIN.search(unit.python) for unit in units):
        return _left(setup)
    for unit in units:
        found = _BACKWARD.search(unit.python)
        if found:
            start, end = unit.line_bounds(found.start())
            code = " ".join(unit.text[start:end].split())
            since = " ".join(loader.span.text.split())[:80]
            return EvalMode(unit.place_at(found.start()), code, loader.place, since)
    return None


def _left(setup: Setup) -> EvalMode | None:
    for unit, tree in _trees(setup):
        found: LeftInEval | None = left_in_eval(tree)
        if found is not None:
            return EvalMode(
                _place(unit, found.line), found.code, _place(unit, found.since_line),
                found.since_code, later=True,
            )  # fmt: skip
    return None


def _trees(setup: Setup) -> Iterator[tuple[Unit, ast.Module]]:
    """The files and cells of a program that adapts a model."""
    if setup.roles.wrapper is None:
        return
    with bounded(SCRIPT):
        for unit in setup.program.units:
            try:
                tree = parse_python(unit.python, unit.name)
            except NotPythonError:
                continue
            yield unit, tree


def _place(unit: Unit, line: int) -> Place:
    return unit.place_at(unit.offset(line, 0))
