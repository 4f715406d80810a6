"""LD922: gradient accumulation scales a custom loss wrongly."""

from __future__ import annotations

import math
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
from lora_doctor.rules._dry_run_script import MODEL

#: Powers of the number of micro-batches by which a loss is off: 1 where it is multiplied by it, -1
#: where it is divided once too often.
_OFF = 0.6
_ACCUMULATED = """
rows = [{"input_ids": (r := [1, *range(5 + n, 15 + n), 2]), "labels": r} for n in range(160)]


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = SOURCE
        return (loss, outputs) if return_outputs else loss


OwnLoss(
    model,
    TrainingArguments("out", per_device_train_batch_size=2, gradient_accumulation_steps=8),
    train_dataset=rows,
    data_collator=default_data_collator,
).train()
"""


class AccumulatedLossOutOfScale(Rule):
    """With `gradient_accumulation_steps` above 1, a custom loss is multiplied by that number, or
    divided by it twice.

    ## What happens
    If multiplied, the logged loss and the gradients are several times too high, so clipping affects
    every step. If divided twice, the loss looks good from the start and the run trains with a
    fraction of its learning rate (Adam hides that, weight decay and clipping do not).

    ## Why
    Since transformers 4.46 the Trainer does not divide by the number of micro-batches where the
    model accepts `num_items_in_batch`, or with a `compute_loss_func`: the loss should be the sum
    over tokens divided by that number. A `compute_loss` that returns a mean and ignores the
    argument is multiplied; one that divides itself is divided twice where the Trainer still
    divides.

    Found by execution: the loss of each micro-batch of the first step is computed again as in a run
    without accumulation, and compared with the loss that the backward passes got.

    ## Versions
    All; which of the two it is depends on release and model.

    ## Fix
    `loss = total / num_items_in_batch` if that argument is passed; no division by the number of
    micro-batches. It changes the size of the updates.

    ## Links
    https://huggingface.co/blog/gradient_accumulation
    """

    code = "LD922"
    name = "accumulated-loss-out-of-scale"
    summary = "Gradient accumulation scales a custom loss wrongly."
    depth = "static"
    descriptions = (
        Symptom(
            r"\bloss\b.{0,60}\bgradient.accumulation\b|\bgradient.accumulation\b"
            r".{0,60}\bloss\b.{0,60}\b(?:scal|larger|times|wrong|high)"
        ),
    )
    told_as = ("The loss is too large with gradient accumulation.",)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + _ACCUMULATED.replace("SOURCE", "outputs.loss"),
            requires={"transformers": ">=4.46"},
            why="a mean, which nobody divides by the eight micro-batches",
        ),
        Example(
            "healthy",
            "",
            script=MODEL
            + _ACCUMULATED.replace("SOURCE", "outputs.loss").replace(
                "model(**inputs)", "model(**inputs, num_items_in_batch=num_items_in_batch)"
            ),
            requires={"transformers": ">=4.46"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.dry_run.accumulated
        if found is None or found.over_rows == "other" or found.steps < 2:
            return
        if min(abs(found.expected), abs(found.given)) < 1e-9:
            return
        ratio = abs(found.given / found.expected)
        power = math.log(ratio) / math.log(found.steps)
        if abs(power) < _OFF:
            return
        source = "the first optimizer step of the run"
        how = f"{ratio:.3g} times larger" if power > 0 else f"{1 / ratio:.3g} times smaller"
        remedy = (
            "Divide the loss summed over tokens by num_items_in_batch, which compute_loss "
            "gets; or pass it on to the model."
            if power > 0
            else "Remove the division by the number of micro-batches: the Trainer divides."
        )
        yield self.finding(
            "warning",
            f"With {found.steps} accumulated micro-batches, the loss of {found.function} is "
            f"{how} than without accumulation.",
            location=Location("file", found.file, found.line)
            if found.file
            else Location("recipe", "gradient_accumulation_steps"),
            evidence=(
                Measurement("gradient_accumulation_steps", found.steps, "the run's arguments"),
                Measurement("loss that the backward passes got", found.given, source),
                Measurement("loss of the same rows without accumulation", found.expected, source),
                Measurement(
                    "reduction of the loss over rows",
                    found.over_rows,
                    "computed with duplicated rows",
                ),
            ),
            proof=Proof("executed", source),
            fixes=(Fix(remedy, "manual"),),
        )
