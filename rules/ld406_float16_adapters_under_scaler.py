"""LD406: weights that train in float16 under a gradient scaler."""

from __future__ import annotations

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
    Patch,
    Precision,
    Proof,
    Rule,
    Symptom,
    quoted,
)
from lora_doctor.rules._ablation import judged

if TYPE_CHECKING:
    from lora_doctor.rule_api import Verification

_AFTER_THE_STEPS = (
    "steps", "adapters-move", "frozen-stay", "loss-falls", "save-reload", "merge",
)  # fmt: skip
_TARGETS = ["q_proj", "v_proj"]


class Float16AdaptersUnderScaler(Rule):
    """The trained weights are float16, and a gradient scaler refuses to unscale float16 gradients.

    ## What happens
    The first optimizer step, or the gradient clipping before it, raises `ValueError: Attempting to
    unscale FP16 gradients.` Training with `fp16=True` never takes a step.

    ## Why
    A scaler multiplies the loss so that small gradients do not underflow in float16, and divides
    the gradients again in float32: trained weights must be float32, only the forward is float16.
    PEFT creates adapters in the dtype of their layer, and since 0.12 casts LoRA's weights to
    float32 afterwards. That does not cover `modules_to_save` and a classification head, which are
    copies of float16 modules, and it is off with `autocast_adapter_dtype=False` or undone when
    `.half()` is called on the wrapped model.

    ## Versions
    All. Before PEFT 0.12, every adapter on a float16 model.

    ## Fix
    Adapters in float32: PEFT's own cast, or a patch that does the same where PEFT has none. Modules
    that are trained in full cannot be float32 inside a float16 model; load the model in float32 and
    compute in float16 (`fp16: true`), or use bfloat16 throughout, which needs no scaler.

    ## Links
    https://docs.pytorch.org/docs/stable/amp.html
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD406"
    name = "float16-adapters-under-scaler"
    summary = "Adapters or modules_to_save train in float16, which a gradient scaler refuses."
    depth = "tiny"
    symptoms = (Symptom(r"Attempting to unscale FP16 gradients"),)
    descriptions = (Symptom(r"\bunscal\w*\b.{0,40}\b(?:fp16|float16)\b"),)
    examples = (
        Example(
            "broken",
            "arch:llama",
            {
                "target_modules": _TARGETS,
                "modules_to_save": ["lm_head"],
                "dtype": "float16",
                "fp16": True,
            },
            why="the copy of the head is float16 like the head",
        ),
        Example(
            "broken",
            "arch:llama",
            {
                "target_modules": _TARGETS,
                "dtype": "float16",
                "fp16": True,
                "autocast_adapter_dtype": False,
            },
            why="PEFT was told to leave them as they are; before 0.12 it knows no other way",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": _TARGETS, "dtype": "float16", "fp16": True},
            requires={"peft": ">=0.12"},
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": _TARGETS, "modules_to_save": ["lm_head"], "fp16": True},
            why="float32 weights that compute in float16",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = judged(case)
        if case.recipe.get("dtype") == "float16" and seen.dtype == "float32":
            raise EvidenceError("the model was run in float32, not in float16")
        precision = Precision.of(case.recipe, seen.dtype, seen.device)
        half = seen.layers_trained_in("float16")
        if not precision.scaled or not half:
            return
        failed = seen.failure is not None and seen.failure.check == "steps"
        source = f"{seen.depth} model, executed"
        evidence = [Measurement(f"dtype of {path}", "float16", source) for path in list(half)[:4]]
        evidence.append(
            Measurement(
                "trained layers in float16",
                f"{sum(half.values())} of {sum(group.count for group in seen.adapters)}",
                source,
            )
        )
        asked = "recipe" if "fp16" in case.recipe else "not set; float16 is trained with a scaler"
        evidence.append(Measurement("fp16", case.recipe.get("fp16", "scaler"), asked))
        if failed and seen.failure is not None:
            evidence.append(
                Measurement(
                    "optimizer step", f"{seen.failure.type}: {seen.failure.message}", source
                )
            )
        yield self.finding(
            "error",
            f"{quoted(list(half), 3)} would be trained in float16: the gradient scaler of fp16 "
            "training refuses float16 gradients, so no step is ever taken.",
            location=Location("module", next(iter(half))),
            evidence=tuple(evidence),
            proof=Proof("executed", "a gradient scaler was run on these gradients")
            if failed
            else Proof("measured", ("the dtype of the trained weights; the run stopped before a "
                                   "step")),
            fixes=tuple(_fixes(case, seen)),
            explains=_AFTER_THE_STEPS,
        )  # fmt: skip


def _fixes(case: Case, seen: Verification) -> Iterator[Fix]:
    """The changes that work, the one that changes least first."""
    if case.source.kind in ("module", "factory"):
        yield Fix(
            "Cast trained weights to float32 after the adapters are added: for p in "
            "model.parameters(): p.data = p.data.float() if p.requires_grad else p.data. Call "
            ".half() before get_peft_model, not after it. A module that is trained in full "
            "then needs the autocast of fp16=True around every forward.",
            "manual",
        )
        return
    if all("float16" in group.dtypes for group in seen.adapters):
        # Nothing was cast at all; where only some are left, PEFT has done what it does.
        cast = next((fix for fix in _casts(case) if _works(case, fix)), None)
        if cast is not None:
            yield cast
            return
    yield Fix(
        "Load the model in float32 and compute in float16: dtype float32, fp16 true.",
        "unsafe",
        (Edit("dtype", "float32"), Edit("fp16", True)),
    )
    yield Fix(
        "On hardware that supports it, train in bfloat16, which needs no scaler.",
        "unsafe",
        (Edit("dtype", "bfloat16"), Edit("fp16", REMOVE), Edit("bf16", True)),
    )


def _casts(case: Case) -> Iterator[Fix]:
    if case.recipe.get("autocast_adapter_dtype") is False:
        yield Fix(
            "Let PEFT keep adapters in float32: remove autocast_adapter_dtype.",
            "safe",
            (Edit("autocast_adapter_dtype", REMOVE),),
        )
    yield Fix(
        "Keep new adapters in float32, which the installed PEFT does not do by itself.",
        "safe",
        patch=Patch("adapters_in_float32"),
    )


def _works(case: Case, fix: Fix) -> bool:
    """Whether a run with this fix takes a step, and nothing trains in float16 any more."""
    patches = case.patches if fix.patch is None else (*case.patches, fix.patch)
    seen = judged(case.again(case.recipe_in_full().edit(fix.edits), patches))
    steps = seen.check("steps")
    return not seen.layers_trained_in("float16") and steps is not None and steps.status == "passed"
