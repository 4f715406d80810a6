"""LD511: trainable weights that the optimizer holds more than once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    quoted,
)
from lora_doctor.rules._optimizer import patterns

if TYPE_CHECKING:
    from lora_doctor.rule_api import TrainableTensor


class HeldTwiceByTheOptimizer(Rule):
    """The same parameter is in two parameter groups, or twice in one.

    ## What happens
    In two groups of one optimizer, torch raises `some parameters appear in more than one parameter
    group`. Twice in one group it only warns, and takes two steps per gradient: the parameter trains
    at about twice the learning rate.

    ## Why
    Groups that are selected by name overlap: for example all trainable parameters, and the adapters
    again with their own learning rate.

    ## Versions
    All versions of torch.

    ## Fix
    By hand, in the training script: put each parameter into exactly one group. Needs the optimizer
    or its groups: `lora_doctor.check(model, optimizer=optimizer)`.

    ## Links
    https://docs.pytorch.org/docs/stable/optim.html
    """

    code = "LD511"
    name = "held-twice-by-the-optimizer"
    summary = "The optimizer holds the same weights more than once."
    depth = "meta"
    symptoms = (
        Symptom(r"some parameters appear in more than one parameter group"),
        Symptom(r"optimizer contains a parameter group with duplicate parameters"),
    )
    examples = (
        Example(
            "broken",
            "tests.models:optimizer_with_adapters_twice",
            loaded=True,
            why="a group of everything, and the adapters once more",
        ),
        Example(
            "healthy",
            "tests.models:optimizer_in_phases",
            loaded=True,
            why="once in each phase",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        state = case.optimizer
        twice = [item for item in state.tensors if item.times > 1]
        if not state.adapters or not twice:
            return
        yield self.finding(
            "warning",
            f"The optimizer holds {_count(twice)} more than once: each occurrence takes a step.",
            location=Location("module", twice[0].name),
            evidence=(
                Measurement("held more than once", quoted(patterns(twice), 4), "the optimizer"),
            ),
            proof=Proof("measured", "the optimizer's groups were read"),
            fixes=(Fix("Put each parameter into one group of one optimizer.", "manual"),),
        )


def _count(items: Sequence[TrainableTensor]) -> str:
    return f"{len(items)} tensors" if len(items) > 1 else items[0].name
