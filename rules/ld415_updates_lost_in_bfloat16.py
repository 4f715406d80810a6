"""LD415: weights are trained in bfloat16, whose numbers are too far apart for a step."""

from __future__ import annotations

from collections.abc import Iterator

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
    quoted,
)
from lora_doctor.rules._ablation import judged

#: The largest learning rate that recipes for adapters usually have.
LARGEST_RATE = 1e-3


class UpdatesLostInBfloat16(Rule):
    """Weights are trained in bfloat16, and a step of the optimizer is less than half the distance
    to the next number that bfloat16 has.

    ## What happens
    Gradients arrive, the optimizer steps, and the weights are what they were: each step is rounded
    away. LN tuning of a model in bfloat16 learns nothing at 2e-4; norms in `modules_to_save` stay
    as they are, while the adapters beside them learn.

    ## Why
    bfloat16 keeps 8 binary digits. Between 0.5 and 1 its numbers are 0.004 apart, and Adam moves a
    weight by about the learning rate. PEFT keeps the weights of LoRA in float32 for that reason;
    the trained copies of `modules_to_save` and of LN tuning have the dtype of the model, which
    transformers 5 takes from the checkpoint. Weights near zero have numbers close by and do move.

    ## Versions
    All. An optimizer that keeps weights of its own in float32 (DeepSpeed) loses nothing.

    ## Fix
    Load the model in float32 and compute in bfloat16 with `bf16=True`. It takes twice the memory
    for the weights, so it is not applied unasked.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD415"
    name = "updates-lost-in-bfloat16"
    summary = "Weights are trained in bfloat16, and each step is rounded away."
    depth = "tiny"
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
            why="PEFT keeps the weights of LoRA in float32, or they begin near zero",
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
        names = quoted((one.pattern for one in lost), 4)
        everything = len(lost) == len(seen.adapters)
        at = f"the learning rate of {rate:g}" if given else f"usual learning rates (up to {rate:g})"
        yield self.finding(
            "error" if everything else "warning",
            f"{names} would be trained in bfloat16, where {at} is less than half the distance to "
            "the next number: every step is rounded away.",
            location=Location("recipe", "dtype"),
            evidence=(
                *(
                    Measurement(
                        f"distance of the numbers of {one.pattern}",
                        f"{one.spacing:.2g}, at least, for nine in ten",
                        f"{seen.depth} model, before the first step",
                    )
                    for one in lost[:4]
                ),
                Measurement("trained so, in the model that ran", count, f"{seen.depth} model"),
                Measurement("trainable in all", trained, "full-size model"),
            ),
            proof=Proof("measured", "the dtype and the values of the weights were read off the "
                        "model that was trained"),
            fixes=(
                Fix(
                    "Load the model in float32 (and compute in bfloat16 with bf16=True).",
                    "unsafe",
                    (Edit("dtype", "float32"),),
                ),
            ),
            explains=("adapters-move", "loss-falls"),
        )  # fmt: skip
