"""LD421: weights that train in bfloat16 under a gradient scaler."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    REMOVE,
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
    made_trainer,
)
from lora_doctor.rules._ablation import judged

if TYPE_CHECKING:
    from lora_doctor.rule_api import AskedTrainer

_TARGETS = ["q_proj", "v_proj"]
#: What the gradient scaler calls on a CUDA device.
_KERNEL = "_amp_foreach_non_finite_check_and_unscale_"
#: A loop that casts weights to float32: whether it comes after the trainer shows a dry run.
_CASTS = re.compile(r"(?:requires_grad|parameters\(\))[\s\S]{0,200}?(?:\.float\(\)|\bfloat32\b)")


class Bfloat16AdaptersUnderScaler(Rule):
    """The trained weights are bfloat16, and `fp16=True` unscales their gradients with a kernel that
    CUDA does not have for bfloat16.

    ## What happens
    The first optimizer step, or the gradient clipping before it, raises `NotImplementedError:
    "_amp_foreach_non_finite_check_and_unscale_cuda" not implemented for 'BFloat16'`.

    ## Why
    `fp16=True` computes in float16 and scales the loss, so that small gradients do not underflow.
    The gradients have the dtype of the trained weights, and are divided again before the step.

    PEFT keeps new adapters in float32, but not copies of bfloat16 modules (`modules_to_save`), nor
    any adapter with `autocast_adapter_dtype=False`. TRL's trainers cast the adapters of a 4-bit or
    8-bit model to bfloat16 themselves, whatever `fp16` says.

    ## Versions
    All releases of torch up to 2.13; the kernel for a CPU has bfloat16. TRL's trainers are made on
    a tiny model with the script's arguments, and the dtypes are read then.

    ## Fix
    `bf16` in the place of `fp16`, on hardware that has bfloat16: it needs no scaler. On other
    hardware, such as a T4, leave both out, or cast the trained weights to float32 after the
    trainer was made.

    ## Links
    https://github.com/pytorch/pytorch/issues/127176
    https://github.com/huggingface/trl/issues/4901
    """

    code = "LD421"
    name = "bfloat16-adapters-under-scaler"
    summary = "Adapters or modules_to_save train in bfloat16 with fp16, whose scaler refuses it."
    depth = "tiny"
    symptoms = (
        Symptom(
            r"_amp_(?:foreach_)?non_finite_check_and_unscale_\w*\W+not implemented for "
            r".?BFloat16"
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {
                "target_modules": _TARGETS,
                "modules_to_save": ["lm_head"],
                "dtype": "bfloat16",
                "fp16": True,
            },
            why="the copy of the head is bfloat16 like the head",
        ),
        Example(
            "broken",
            "arch:llama",
            {
                "target_modules": _TARGETS,
                "dtype": "bfloat16",
                "fp16": True,
                "autocast_adapter_dtype": False,
            },
            requires={"peft": ">=0.12"},
            why="PEFT was told to leave them as they are",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": _TARGETS, "dtype": "bfloat16", "fp16": True},
            requires={"peft": ">=0.12"},
            why="PEFT casts the adapters to float32",
        ),
        Example(
            "healthy",
            "arch:llama",
            {
                "target_modules": _TARGETS,
                "modules_to_save": ["lm_head"],
                "dtype": "bfloat16",
                "bf16": True,
            },
            why="no scaler",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.recipe.mixed_precision != "float16":
            return
        seen = judged(case)
        layers = sum(group.count for group in seen.adapters)
        half = sum(seen.layers_trained_in("bfloat16").values())
        share, source, by = (
            f"{half:,} of {layers:,} trained layers",
            f"{seen.depth} model, executed",
            "",
        )
        if not half:
            trainer = _made_trainer(case)
            if trainer is None or not trainer[1].trained.get("bfloat16"):
                return
            by, asked = trainer
            half, everything = asked.trained["bfloat16"], sum(asked.trained.values())
            share = f"{half:,} of {everything:,} parameters"
            source = f"{by} of {asked.release}, made on a tiny model"
        what = f"{by} casts what it trains to bfloat16" if by else "Trained weights are in bfloat16"
        yield self.finding(
            "error",
            f"{what}, and fp16=True scales the gradients: CUDA cannot unscale gradients in "
            "bfloat16, and the first optimizer step raises NotImplementedError.",
            location=Location("recipe", "fp16"),
            evidence=(
                Measurement("trained in bfloat16", share, source),
                Measurement("fp16", True, "recipe"),
                Measurement(f"{_KERNEL}cuda", "float16, float32 and float64 only",
                            "sources of torch up to 2.13"),
            ),
            proof=Proof("measured", "the dtype of what is trained; no step was taken on a GPU"),
            fixes=tuple(_fixes(case, by)),
        )  # fmt: skip


def _made_trainer(case: Case) -> tuple[str, AskedTrainer] | None:
    """The trainer of a script that was read, made on a tiny model, and the name of its class."""
    trainer = made_trainer(case.program) if case.has("program") else None
    if trainer is None or case.has("dry_run"):
        return None
    if any(_CASTS.search(unit.text) for unit in case.program.program.units):
        return None
    try:
        return trainer.name.rpartition(".")[2], case.refused_trainer
    except EvidenceError:
        return None  # of the trainer nothing can be said; the model was run


def _fixes(case: Case, by: str) -> Iterator[Fix]:
    if case.recipe.get("autocast_adapter_dtype") is False:
        yield Fix(
            "Let PEFT keep adapters in float32: remove autocast_adapter_dtype.",
            "safe",
            (Edit("autocast_adapter_dtype", REMOVE),),
        )
    yield Fix(
        "Train in bfloat16, which needs no scaler, on hardware that has it.",
        "unsafe",
        (Edit("fp16", REMOVE), Edit("bf16", True)),
    )
    if by:
        yield Fix(
            f"On hardware without bfloat16: after {by} was made, cast what it trains to float32: "
            "for p in trainer.model.parameters(): p.data = p.data.float() if p.requires_grad else "
            "p.data.",
            "manual",
        )
