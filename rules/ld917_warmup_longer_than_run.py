"""LD917: warm-up is longer than the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    REMOVE,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._supervision import proof

if TYPE_CHECKING:
    from lora_doctor.rule_api import Recipe


class WarmupLongerThanRun(Rule):
    """`warmup_steps` is at least the number of steps of the whole run.

    ## What happens
    The learning rate rises until the end and never reaches the set value; little is learned.

    ## Why
    The warm-up of a recipe for a large dataset (100 steps, 500 steps) is used with a small one: 64
    rows in batches of 8 are 8 steps per epoch.

    ## Versions
    All.

    ## Fix
    A tenth of the steps. It changes what the model learns.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/trainer
    """

    code = "LD917"
    name = "warmup-longer-than-run"
    summary = "Warm-up is longer than the run: the learning rate is never reached."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\bwarm.?up\b.{0,40}\b(?:longer|more|larger|exceed\w*)\b.{0,40}\b(?:training|run|"
            r"total|max_steps)\b"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"], "warmup_steps": 100},
            data="tests/data/rows/chats.jsonl",
            why="4 rows are 3 steps in 3 epochs",
        ),
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj"], "warmup_steps": 500, "max_steps": 60},
            why="no rows are needed to see it",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"], "warmup_steps": 100, "max_steps": 2000},
            data="tests/data/rows/chats.jsonl",
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("supervision") and _by_number(case.recipe) is not None:
            yield from self._of_recipe(case)
            return
        plan = case.supervision.plan
        if plan is None or not plan.warmup_steps or plan.warmup_steps < plan.steps:
            return
        yield self._found(
            case.recipe,
            (plan.warmup_steps, plan.steps),
            (
                Measurement("rows", plan.rows, "the training set"),
                Measurement("rows per step", plan.rows_per_step, "batch size times accumulation"),
                Measurement("steps per epoch", plan.steps_per_epoch, "rows / rows per step"),
                Measurement("steps of the run", plan.steps, "on one device"),
                Measurement("steps of the warm-up", plan.warmup_steps, "the recipe"),
                Measurement("the Trainer's default", list(plan.defaults), "not set in the recipe"),
            ),
            proof(case.supervision),
        )

    def _of_recipe(self, case: Case) -> Iterator[Finding]:
        """Both numbers are in the recipe: no rows are needed."""
        numbers = _by_number(case.recipe)
        if numbers is None or numbers[0] < numbers[1]:
            return
        places = case.recipe.places
        yield self._found(
            case.recipe,
            numbers,
            (
                Measurement("steps of the run", numbers[1], str(places.get("max_steps", "recipe"))),
                Measurement(
                    "steps of the warm-up", numbers[0], str(places.get("warmup_steps", "recipe"))
                ),
            ),
            Proof("read", "max_steps and warmup_steps of the recipe"),
        )

    def _found(
        self,
        recipe: Recipe,
        numbers: tuple[int, int],
        evidence: tuple[Measurement, ...],
        proof: Proof,
    ) -> Finding:
        """``numbers``: steps of the warm-up, and of the run."""
        warmup, steps = numbers
        fewer = max(steps // 10, 1) if steps > 1 else 0
        return self.finding(
            "warning",
            f"The warm-up takes {warmup:,} steps and the run has {steps:,}: the learning rate "
            f"reaches at most {steps / warmup:.0%} of the set value.",
            location=Location("recipe", "warmup_steps"),
            evidence=evidence,
            proof=proof,
            fixes=(
                Fix(
                    f"Warm up for {fewer} {'step' if fewer == 1 else 'steps'}.",
                    "unsafe",
                    (Edit("warmup_steps", fewer), Edit("warmup_ratio", REMOVE))
                    if recipe.get("warmup_ratio") is not None
                    else (Edit("warmup_steps", fewer),),
                ),
            ),
        )


def _by_number(recipe: Recipe) -> tuple[int, int] | None:
    """Steps of the warm-up and of the run, where the recipe has both as numbers."""
    warmup, steps = recipe.get("warmup_steps"), recipe.get("max_steps")
    known = isinstance(warmup, int) and isinstance(steps, int) and warmup >= 1 and steps >= 1
    return (warmup, steps) if known else None
