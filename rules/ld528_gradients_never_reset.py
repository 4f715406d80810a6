"""LD528: the gradients of earlier steps are never reset."""

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
    gradients_never_reset,
)
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
    to add to it. In a script that is only read, a loop is found that calls `backward()` and
    `optimizer.step()` where nothing in the script resets gradients.

    ## Versions
    All.

    ## Fix
    `optimizer.zero_grad()` after each `optimizer.step()`. It changes the training.

    ## Links
    https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html,
    https://github.com/snakers4/silero-vad/pull/699
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
        Example(
            "broken",
            "tests/loops/never_reset.py",
            depth="static",
            why="no zero_grad() in the whole script",
        ),
        Example("healthy", "tests/loops/teacher_without_gradients.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("dry_run"):
            yield from self._of_script(case)
            return
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

    def _of_script(self, case: Case) -> Iterator[Finding]:
        """A loop of a script that was only read."""
        found = gradients_never_reset(case.program)
        if found is None:
            return
        place, loop, step = found
        yield self.finding(
            "warning",
            f"Nothing in the script resets the gradients: {loop.code} adds those of each step to "
            "all earlier ones.",
            location=Location("file", place.file, place.line),
            evidence=(
                Measurement("gradients added", loop.code, str(place)),
                Measurement("optimizer step", loop.step_code, str(step)),
                Measurement("zero_grad()", "nowhere", "the script"),
            ),
            proof=Proof("read", "the text of the script"),
            fixes=(
                Fix("Call optimizer.zero_grad() after each optimizer.step().", "manual"),
            ),
        )  # fmt: skip
