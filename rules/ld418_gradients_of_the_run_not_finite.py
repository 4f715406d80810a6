"""LD418: the gradients of the run are not finite, though those of the model's own loss are."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Proof, Rule
from lora_doctor.rules._dry_run_script import LOOP, MODEL
from lora_doctor.rules._training_signal import STEPS, at, contract_failed, signal, without_labels


class GradientsOfTheRunNotFinite(Rule):
    """In the first optimizer steps of the run gradients are NaN or infinite, while the same model
    on the same batch gives finite ones for its own loss.

    ## What happens
    From the first such step on the adapters are NaN, and so is every loss that is logged after it.
    No error is raised.

    ## Why
    The loss that the script computes: a logarithm or a division of 0, a mean over no element (a
    mask that leaves nothing), a square root at 0, whose gradient is infinite; a NaN multiplied by 0
    stays NaN.

    The training contract trains a copy of the model on the batch of the run with its own loss; the
    gradients of the run are read when the optimizer takes its step.

    ## Versions
    All.

    ## Fix
    Add a small number below logarithms, roots and divisions, or leave out elements before the mean
    instead of multiplying them by 0. `torch.autograd.set_detect_anomaly(True)` names the operation.

    ## Links
    https://docs.pytorch.org/docs/stable/autograd.html#anomaly-detection
    """

    code = "LD418"
    name = "gradients-of-the-run-not-finite"
    summary = "The script's own loss gives gradients that are NaN or infinite."
    depth = "static"
    examples = (
        Example(
            "broken",
            "",
            script=MODEL
            + LOOP.replace(
                "    wrapped(input_ids=ids, labels=ids).loss.backward()\n",
                "    loss = wrapped(input_ids=ids, labels=ids).loss\n"
                "    (loss - loss.detach()).sqrt().backward()\n",
            ),
            why="the square root of 0",
        ),
        Example("healthy", "", script=MODEL + LOOP),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        seen = signal(case).gradients
        if seen is None or not seen.not_finite:
            return
        if contract_failed(case, "gradients") or contract_failed(case, "loss-finite"):
            return  # the model itself
        if without_labels(case) != "none":
            return  # LD901
        yield self.finding(
            "error",
            f"In {seen.steps} optimizer step{'s' if seen.steps > 1 else ''}, {seen.not_finite} of "
            f"{seen.adapters} adapter tensors get NaN or infinity as gradient, while the model's "
            "own loss is finite.",
            location=at(seen.file, seen.line, "training loop"),
            evidence=(
                Measurement("tensors with such a gradient", seen.not_finite, STEPS),
                Measurement("largest finite gradient", seen.largest, STEPS),
            ),
            proof=Proof("executed", STEPS),
            fixes=(
                Fix(
                    "Correct the loss that the script computes; "
                    "torch.autograd.set_detect_anomaly(True) names the operation.",
                    "manual",
                ),
            ),
        )
