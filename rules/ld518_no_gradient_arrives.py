"""LD518: the optimizer takes its steps without gradients for the adapters."""

from __future__ import annotations

from collections.abc import Iterator
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
    gradients_cleared,
)
from lora_doctor.rules._dry_run_script import LOOP, MODEL
from lora_doctor.rules._training_signal import (
    SAME_LOSS,
    STEPS,
    at,
    contract_failed,
    signal,
    without_labels,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import StepGradients


class NoGradientArrives(Rule):
    """In the first optimizer steps of the run the adapters have no gradient, or only zeros,
    although the model itself gives them one.

    ## What happens
    No error is raised. The loss is logged, the progress bar runs, an adapter is saved, and its
    weights are those of its initialization.

    ## Why
    The script, not the model, loses the gradient: `backward()` is not called, or `zero_grad()` is
    called between `backward()` and `step()`; the loss is multiplied by 0 (a `beta`, a weight of a
    loss term); it is computed from outputs that were detached or made under `torch.no_grad()`, so
    that at most a head trains.

    A dry run reads the gradients when the optimizer has taken its step, and compares with the
    training contract, which trains a copy of the same model on the same batch. Trainers whose model
    writes what it trains on (GRPO) are judged by their rewards, LD938. In a script that is only
    read, `zero_grad()` right before the optimizer's only `step()` is found.

    ## Versions
    All.

    ## Fix
    In the training code: the order `loss.backward()`, `optimizer.step()`, `optimizer.zero_grad()`,
    and a loss that is computed from the model's outputs as they are.

    ## Links
    https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html
    """

    code = "LD518"
    name = "no-gradient-arrives"
    summary = "The optimizer takes its steps without gradients for the adapters."
    depth = "static"
    symptoms = (Symptom(SAME_LOSS),)
    descriptions = (
        Symptom(
            r"\b(?:weights?|adapters?|lora_\w)\b.{0,60}\b(?:same|identical|equal|unchanged)\b."
            r"{0,20}\bbefore and after (?:the )?training"
        ),
    )
    told_as = ("The loss stays the same from step to step.",)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL
            + LOOP.replace("    optimizer.step()\n    optimizer.zero_grad()\n",
                           "    optimizer.zero_grad()\n    optimizer.step()\n"),
            why="the gradients are cleared before the step",
        ),
        Example("healthy", "", script=MODEL + LOOP),
        Example(
            "broken",
            "tests/loops/cleared_before_the_step.py",
            depth="static",
            why="zero_grad() stands between backward() and step()",
        ),
        Example("healthy", "tests/loops/teacher_without_gradients.py", depth="static"),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("dry_run"):
            yield from self._of_script(case)
            return
        found = signal(case)
        seen = found.gradients
        if seen is None or seen.largest > 0 or seen.not_finite or seen.generated or found.rewards:
            return
        pairs = found.pairs
        if pairs is not None and pairs.alike_in_batch == pairs.rows:
            return  # LD928
        if contract_failed(case, "gradients") or without_labels(case) == "all":
            return
        yield self.finding(
            "error",
            f"{_what(seen)}: the adapters stay as they were initialized.",
            location=at(seen.file, seen.line, "training loop"),
            evidence=(
                Measurement("optimizer steps", seen.steps, STEPS),
                Measurement("trainable adapter tensors", seen.adapters, "the optimizer"),
                Measurement("with a gradient", seen.with_gradient, STEPS),
                Measurement("largest gradient", seen.largest, STEPS),
                Measurement("other tensors with a gradient", seen.others_moved, STEPS),
            ),
            proof=Proof("executed", STEPS),
            fixes=(
                Fix(
                    "Call loss.backward() before optimizer.step() and optimizer.zero_grad() after "
                    "it, on a loss of the model's own outputs, not detached and not times 0.",
                    "manual",
                ),
            ),
        )

    def _of_script(self, case: Case) -> Iterator[Finding]:
        """Gradients that are cleared right before the step, in a script that was only read."""
        for place, cleared, step in gradients_cleared(case.program):
            yield self.finding(
                "error",
                f"{cleared.code} clears the gradients before {cleared.step_code} uses them: the "
                "adapters stay as they were initialized.",
                location=Location("file", place.file, place.line),
                evidence=(
                    Measurement("gradients cleared", cleared.code, str(place)),
                    Measurement("the optimizer's only step", cleared.step_code, str(step)),
                ),
                proof=Proof("read", "the order of the calls in the script"),
                fixes=(
                    Fix("Call optimizer.zero_grad() after optimizer.step().", "manual"),
                ),
            )  # fmt: skip


def _what(seen: StepGradients) -> str:
    steps = f"{seen.steps} optimizer step{'s' if seen.steps > 1 else ''}"
    if seen.others_moved:
        return f"In {steps}, gradients reach {seen.others_moved} other tensors, but no adapter"
    if not seen.with_gradient:
        return f"In {steps}, no adapter has a gradient"
    return f"In {steps}, every gradient of the adapters is 0"
