"""LD510: trainable weights whose learning rate is 0 for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

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
    brings_optimizer,
)
from lora_doctor.rules._optimizer import not_updated

_FIXES = (
    Fix(
        "Give their parameter group a learning rate above 0 in the phase in which they should "
        "train; with a scheduler, in at least one step.",
        "manual",
    ),
)


class LearningRateZero(Rule):
    """Adapter parameters that the optimizer holds only in groups whose learning rate is 0 for the
    whole run.

    ## What happens
    Nothing is raised: gradients arrive, the loss is logged, and the weights stay as they are. The
    saved adapter is the untrained one.

    ## Why
    A step at learning rate 0 changes nothing. Starting at learning rate 0 is fine when a later
    phase raises it, as in a warm-up; it is not fine when that phase never comes or a factor of 0
    never ends. A scheduler given as `scheduler=` is run on a copy for `planned_steps` steps to find
    out.

    ## Versions
    All versions of torch.

    ## Fix
    By hand: a learning rate above 0, in the recipe or, in the training script, for the group in the
    phase in which it should train. Where groups differ, the optimizer tells:
    `lora_doctor.check(model, optimizer=optimizer)`, with `scheduler=` and `planned_steps=`, or a
    mapping of phase to groups for a schedule of phases.

    ## Links
    https://docs.pytorch.org/docs/stable/optim.html
    """

    code = "LD510"
    name = "learning-rate-zero"
    summary = "Trainable weights have learning rate 0 for the whole run."
    depth = "static"
    descriptions = (
        Symptom(
            r"\b(?:learning.?rate|lr)\b.{0,30}\b(?:is|stays?|remains?|always|constantly)\b."
            r"{0,10}\b(?:0|zero)\b(?!\.?\d)"
        ),
    )
    told_as = ("The learning rate is 0 during the whole training.",)
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "learning_rate": 0},
            depth="meta",
            why="the recipe sets it for everything that is trained",
        ),
        Example(
            "broken",
            "tests.models:optimizer_at_learning_rate_zero",
            loaded=True,
            why="the group of the adapters has learning rate 0, and there is no later phase",
        ),
        Example(
            "healthy",
            "tests.models:optimizer_in_phases",
            loaded=True,
            why="learning rate 0 in the first phase only",
        ),
        Example(
            "healthy",
            "tests.models:optimizer_with_warm_up",
            loaded=True,
            why="a scheduler that starts at 0",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if _is_zero(case.recipe.get("learning_rate")) and not _has_own_optimizer(case):
            yield self.finding(
                "error",
                "learning_rate is 0: no step changes the adapters, and the saved adapter is the "
                "untrained one.",
                location=Location("recipe", "learning_rate"),
                evidence=(Measurement("learning_rate", 0, "recipe"),),
                proof=Proof("read", "the recipe sets it for all trained parameters"),
                fixes=(Fix("Set a learning rate above 0.", "manual"),),
            )
            return
        state = case.optimizer
        if state.adapters:
            yield from not_updated(
                self, state, "learning rate 0", "only at learning rate 0", _FIXES
            )


def _is_zero(rate: object) -> bool:
    return isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate == 0


def _has_own_optimizer(case: Case) -> bool:
    """Whether another learning rate than the recipe's is what trains: an optimizer that was handed
    over, or that the run made."""
    if case.has("dry_run") or case.has("optimizer"):
        return True
    return case.has("program") and brings_optimizer(case.program)
