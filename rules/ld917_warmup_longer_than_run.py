"""LD917: warm-up is longer than the run."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    REMOVE,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Rule,
)
from lora_doctor.rules._supervision import proof


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
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"], "warmup_steps": 100},
            data="tests/data/rows/chats.jsonl",
            why="4 rows are 3 steps in 3 epochs",
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
        plan = case.supervision.plan
        if plan is None or not plan.warmup_steps or plan.warmup_steps < plan.steps:
            return
        reached = plan.steps / plan.warmup_steps
        steps = max(plan.steps // 10, 1) if plan.steps > 1 else 0
        yield self.finding(
            "warning",
            f"The warm-up takes {plan.warmup_steps:,} steps and the run has {plan.steps:,}: "
            f"the learning rate reaches at most {reached:.0%} of the set value.",
            location=Location("recipe", "warmup_steps"),
            evidence=(
                Measurement("rows", plan.rows, "the training set"),
                Measurement("rows of a step", plan.rows_per_step, "batch size times accumulation"),
                Measurement("steps of an epoch", plan.steps_per_epoch, "rows over rows of a step"),
                Measurement("steps of the run", plan.steps, "on one device"),
                Measurement("steps of the warm-up", plan.warmup_steps, "the recipe"),
                Measurement("the Trainer's default", list(plan.defaults), "not set in the recipe"),
            ),
            proof=proof(case.supervision),
            fixes=(
                Fix(
                    f"Warm up for {steps} steps.",
                    "unsafe",
                    (Edit("warmup_steps", steps), Edit("warmup_ratio", REMOVE))
                    if case.recipe.get("warmup_ratio") is not None
                    else (Edit("warmup_steps", steps),),
                ),
            ),
        )
