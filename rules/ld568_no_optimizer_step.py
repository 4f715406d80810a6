"""LD568: the command comes to its end without one step of an optimizer."""

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
)
from lora_doctor.rules._dry_run_script import LOOP, MODEL
from lora_doctor.rules._training_signal import signal


class NoOptimizerStep(Rule):
    """The command computes gradients for the adapters until its data ends, and never calls `step`
    of an optimizer.

    ## What happens
    No error is raised. The loss is logged, an adapter is saved, and its weights are those of its
    initialization.

    ## Why
    Gradients are accumulated over more batches than an epoch has, and the counter begins anew with
    each epoch; a condition on the step number never holds; the call is missing.

    A dry run reads the gradients when the command comes to its end, or when `zero_grad` clears
    them; the data loader was not cut short, and data sets keep their length in a dry run.

    ## Versions
    All.

    ## Fix
    Count batches over the whole run, or take a step at the end of each epoch as well.

    ## Links
    https://docs.pytorch.org/docs/stable/optim.html
    """

    code = "LD568"
    name = "no-optimizer-step"
    summary = "The command ends without a single optimizer step."
    depth = "static"
    descriptions = (Symptom(r"\b(?:forg[eo]t|without|never|missing)\b.{0,30}\boptimizer\.step\b"),)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL
            + LOOP.replace("for ids in", "for n, ids in enumerate(")
            .replace("batch_size=2):", "batch_size=2), 1):")
            .replace("    optimizer.step()\n    optimizer.zero_grad()\n",
                     "    if n % 16 == 0:\n        optimizer.step()\n"
                     "        optimizer.zero_grad()\n"),
            why="16 batches are accumulated, and an epoch has four",
        ),
        Example(
            "broken",
            "",
            script=MODEL + LOOP.replace("    optimizer.step()\n", ""),
            why="the call is missing",
        ),
        Example("healthy", "", script=MODEL + LOOP),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        found = signal(case).without_step
        if found is None:
            return
        source = "the end of the run"
        yield self.finding(
            "error",
            f"{found.tensors} adapter tensors get a gradient, and no optimizer takes a step until "
            "the end of the run: the adapters stay as they were initialized.",
            location=Location("environment", "training loop"),
            evidence=(
                Measurement("adapter tensors with a gradient", found.tensors, source),
                Measurement("optimizer steps", case.dry_run.steps, source),
            ),
            proof=Proof("executed", source),
            fixes=(
                Fix(
                    "Call optimizer.step() at least once per epoch: after no more batches than an "
                    "epoch has, and at its end.",
                    "manual",
                ),
            ),
        )
