"""LD528: the gradients of earlier steps are never reset."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Proof, Rule, Symptom
from lora_doctor.rules._dry_run_script import LOOP, MODEL
from lora_doctor.rules._training_signal import STEPS, at, signal


class GradientsNeverReset(Rule):
    """After an optimizer step the gradients stay, and those of the next step are added to them.

    ## What happens
    No error is raised. Each step follows the sum of all gradients so far: with SGD the updates grow
    with every step, with Adam old batches outweigh new ones. The loss falls at first and then
    oscillates or rises.

    ## Why
    `backward()` adds to `.grad`. Nobody calls `optimizer.zero_grad()` after the step, or it is
    called on another optimizer or model than the one that trains.

    A dry run compares a gradient after a step with what is there when the next backward pass begins
    to add to it.

    ## Versions
    All.

    ## Fix
    `optimizer.zero_grad()` after each `optimizer.step()`. It changes the training.

    ## Links
    https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html
    """

    code = "LD528"
    name = "gradients-never-reset"
    summary = "The gradients of earlier steps are never reset."
    depth = "static"
    descriptions = (Symptom(r"\b(?:forg[eo]t|without|never|missing|no)\b.{0,30}\bzero_grad\b"),)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + LOOP.replace("    optimizer.zero_grad()\n", ""),
            why="nobody resets the gradients",
        ),
        Example("healthy", "", script=MODEL + LOOP),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = signal(case).gradients
        if seen is None or not seen.kept:
            return
        yield self.finding(
            "warning",
            "The gradients of a step are still there when those of the next step are added: "
            "zero_grad() is not called in between.",
            location=at(seen.file, seen.line, "training loop"),
            evidence=(
                Measurement("optimizer steps", seen.steps, STEPS),
                Measurement("gradient before the next backward", "unchanged", STEPS),
            ),
            proof=Proof("executed", STEPS),
            fixes=(
                Fix("Call optimizer.zero_grad() after each optimizer.step().", "manual"),
            ),
        )  # fmt: skip
