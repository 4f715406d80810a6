"""LD589: accumulated gradients are reset before the optimizer uses them."""

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
    gradients_discarded,
)


class AccumulatedGradientsLost(Rule):
    """The gradients of all micro-batches but the last are reset before the optimizer's step.

    ## What happens
    No error is raised, and the loss falls. Each step uses the last micro-batch alone, with a loss
    that was divided by the number of micro-batches: the effective batch size is that of one
    micro-batch, and the rest of the computation is lost.

    ## Why
    `zero_grad()` stands before `backward()` and runs for each micro-batch, while `step()` runs for
    every n-th one only. In a block of accelerate's `accumulate()` both are skipped until the last
    micro-batch; there `zero_grad()` comes first and resets what the others have added.

    ## Versions
    All.

    ## Fix
    By hand: `optimizer.zero_grad()` after `optimizer.step()`, in the same block. It changes the
    training.

    ## Links
    https://github.com/meituan-longcat/LongCat-Image/issues/46,
    https://huggingface.co/docs/accelerate/usage_guides/gradient_accumulation
    """

    code = "LD589"
    name = "accumulated-gradients-lost"
    summary = "Accumulated gradients are reset before the optimizer uses them."
    depth = "static"
    descriptions = (
        Symptom(r"\bzero_grad\b.{0,60}\baccumulat\w+|\baccumulat\w+.{0,60}\bzero_grad\b"),
    )
    examples = (
        Example(
            "broken",
            "tests/loops/reset_for_each_micro_batch.py",
            depth="static",
            why="zero_grad() comes first in the block that accumulates",
        ),
        Example("healthy", "tests/loops/reset_after_the_step.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("program"):
            return
        for place, found, since in gradients_discarded(case.program):
            yield self.finding(
                "warning",
                f"{found.code} resets the gradients that earlier micro-batches have added: each "
                "step uses the last one alone.",
                location=Location("file", place.file, place.line),
                evidence=(
                    Measurement("gradients reset", found.code, str(place)),
                    Measurement("accumulated by", found.since_code, str(since)),
                ),
                proof=Proof("read", "the order of the calls in the script"),
                fixes=(
                    Fix("Call optimizer.zero_grad() after optimizer.step().", "manual"),
                ),
            )  # fmt: skip
