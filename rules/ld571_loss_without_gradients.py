"""LD571: the loss that is trained on was computed without gradients."""

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
    losses_without_gradients,
)

_HOW = {
    "no_grad": "is computed without gradients",
    "detached": "is detached from the model",
}


class LossWithoutGradients(Rule):
    """`backward()` is called on a loss that has no way back to the weights: it was computed under
    `torch.no_grad()`, or detached.

    ## What happens
    `RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn` at the
    first step. With `loss.requires_grad_(True)` the error is gone, and the adapters learn nothing.

    ## Why
    Under `torch.no_grad()` or `torch.inference_mode()`, also as a decorator, no graph is recorded.
    `.item()`, `.detach()`, `.data`, `float(loss)` and `torch.tensor(loss)` give a value without
    one. A `compute_loss` of a Trainer of one's own is read like a loop.

    The script is read, not run: a value that may have a way to the weights is not reported.

    ## Versions
    All versions of torch.

    ## Fix
    By hand: compute the loss where gradients are on, and detach only what is logged.

    ## Links
    https://docs.pytorch.org/docs/stable/generated/torch.no_grad.html
    """

    code = "LD571"
    name = "loss-without-gradients"
    summary = "The loss that is trained on was computed without gradients, or detached."
    depth = "static"
    symptoms = (
        # Without the script it is mostly another failure.
        Symptom(r"element 0 of (?:tensors|variables) does not require grad", weight=-3),
    )
    descriptions = (
        Symptom(r"\bno_grad\b.{0,80}\b(?:backward|grad_fn|require\w* grad)"),
        Symptom(r"\b(?:backward|grad_fn|require\w* grad)\b.{0,80}\bno_grad\b"),
    )
    examples = (
        Example(
            "broken",
            "tests/loops/forward_without_gradients.py",
            depth="static",
            why="forward under torch.no_grad(), as in an evaluation",
        ),
        Example(
            "broken",
            "tests/loops/detached_in_compute_loss.py",
            depth="static",
            why="compute_loss of a Trainer returns a loss that is detached",
        ),
        Example("healthy", "tests/loops/teacher_without_gradients.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for place, loss, reason in losses_without_gradients(case.program):
            yield self.finding(
                "error",
                f"{loss.code}: the loss {_HOW[loss.why.how]} ({loss.why.code}), and no gradient "
                "reaches the adapters.",
                location=Location("file", place.file, place.line),
                evidence=(
                    Measurement("the loss", loss.code, str(place)),
                    Measurement("without gradients since", loss.why.code, str(reason)),
                ),
                proof=Proof("read", "the values were followed through the script"),
                fixes=(
                    Fix(
                        "Compute the loss outside of torch.no_grad(), and detach only what is "
                        "logged.",
                        "manual",
                    ),
                ),
            )
