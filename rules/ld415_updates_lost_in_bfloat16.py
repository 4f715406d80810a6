"""LD415: weights are trained in bfloat16, whose spacing is too coarse for the optimizer's steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    quoted,
)
from lora_doctor.rules._ablation import judged

if TYPE_CHECKING:
    from lora_doctor.rule_api import SpacingReading

#: The largest learning rate that recipes for adapters usually have.
LARGEST_RATE = 1e-3


class UpdatesLostInBfloat16(Rule):
    """Weights are trained in bfloat16, and an optimizer step is smaller than half the distance to
    the next bfloat16 number.

    ## What happens
    Gradients are computed and the optimizer steps, but the weights do not change, because each
    update is rounded away. LN tuning of a bfloat16 model learns nothing at 2e-4; norms in
    `modules_to_save` keep their values while the adapters next to them learn, and so do the
    magnitudes of DoRA in TRL's QLoRA: the run trains plain LoRA.

    ## Why
    bfloat16 has 8 bits of precision. Between 0.5 and 1 its numbers are 0.004 apart, while Adam
    changes a weight by about the learning rate. This is why PEFT keeps LoRA weights in float32. The
    trained copies of `modules_to_save` and of LN tuning have the dtype of the model, which
    transformers 5 takes from the checkpoint. TRL casts the adapter weights of a 4-bit or 8-bit
    model to bfloat16; older releases also cast DoRA's magnitudes. Near zero the numbers are closer
    together, and weights do change.

    ## Versions
    All. An optimizer that keeps float32 master weights (DeepSpeed) is not affected.

    ## Fix
    Load the model in float32 and compute in bfloat16 with `bf16=True`. This doubles the memory of
    the weights, so it is not applied by default.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD415"
    name = "updates-lost-in-bfloat16"
    summary = "Weights are trained in bfloat16, and each update is rounded away."
    depth = "tiny"
    descriptions = (
        Symptom(
            r"\bbf(?:loat)?16\b.{0,60}\b(?:updates?|steps?)\b.{0,40}\b(?:rounded|rounds?|lost|"
            r"vanish\w*|too small)"
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"peft_type": "LN_TUNING", "task_type": "CAUSAL_LM", "dtype": "bfloat16"},
            requires={"peft": ">=0.12"},
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "dtype": "bfloat16"},
            why="PEFT keeps LoRA weights in float32, or they start near zero",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = judged(case)
        readings = seen.observations.spacings
        given = case.recipe.get("learning_rate")
        rate = float(given or LARGEST_RATE)
        lost = [one for one in readings if rate < one.spacing / 2]
        if not lost:
            steps = seen.check("steps")
            if not readings and (steps is None or steps.status != "passed"):
                raise EvidenceError("the training contract stopped before the first optimizer step")
            return
        count = sum(one.parameters for one in lost)
        trained = case.structure.injection.trainable_parameters
        names = quoted(map(_named, lost), 4)
        everything = sum(not one.part for one in lost) == len(seen.adapters)
        at = (
            f"the learning rate of {rate:g} is"
            if given
            else f"usual learning rates (up to {rate:g}) are"
        )
        yield self.finding(
            "error" if everything else "warning",
            f"{names} would be trained in bfloat16, where {at} less than half the distance to "
            "the next number, so every update is rounded away.",
            location=Location("recipe", "dtype"),
            evidence=(
                *(
                    Measurement(
                        f"bfloat16 spacing in {_named(one)}",
                        f"at least {one.spacing:.2g} for 90% of the values",
                        f"{seen.depth} model, before the first step",
                    )
                    for one in lost[:4]
                ),
                Measurement("parameters trained in bfloat16", count, f"{seen.depth} model"),
                Measurement("trainable parameters", trained, "full-size model"),
            ),
            proof=Proof("measured", "the dtype and values of the weights were read from the "
                        "model that was trained"),
            fixes=tuple(_fixes(lost)),
            explains=("adapters-move", "loss-falls"),
        )  # fmt: skip


def _named(reading: SpacingReading) -> str:
    return ".".join(filter(None, (reading.pattern, reading.part)))


def _fixes(lost: list[SpacingReading]) -> Iterator[Fix]:
    """A trainer that casts one kind of vector to bfloat16 does so whatever the model has."""
    parts = sorted({one.part for one in lost if one.part})
    if parts:
        yield Fix(
            f"Cast {quoted(parts)} back to float32 once the trainer is created: parameter.data = "
            "parameter.data.float().",
            "manual",
        )
    if any(not one.part for one in lost):
        yield Fix(
            "Load the model in float32 and compute in bfloat16 with bf16=True.",
            "unsafe",
            (Edit("dtype", "float32"),),
        )
