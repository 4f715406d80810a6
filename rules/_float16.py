"""What the rules about float16 have in common: who chose it, what was measured, the fixes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lora_doctor.rule_api import REMOVE, Case, Edit, Fix, Measurement, float16_keys, quoted

if TYPE_CHECKING:
    from lora_doctor.rule_api import ActivationReading, Verification


def run_of(case: Case) -> Verification | None:
    """The training contract as it was run; ``None`` where this depth runs nothing."""
    return case.verification if case.reaches("tiny") and case.has("verification") else None


def computes_in_float16(case: Case) -> bool:
    """Whether a key of the recipe asks for float16, or a model that was handed over is in it."""
    if float16_keys(case.recipe):
        return True
    run = run_of(case) if case.source.kind in ("module", "factory") else None
    return run is not None and run.dtype == "float16"


def measured(run: Verification | None) -> tuple[ActivationReading, ...]:
    """The largest outputs of the layers on the user's own weights; empty without these."""
    if run is None or not run.observations.user_weights:
        return ()
    return run.observations.activations


def not_kept(run: Verification | None) -> list[ActivationReading]:
    """Layers that computed in float16 although the model's class keeps them in float32."""
    readings = run.observations.activations if run is not None else ()
    return [item for item in readings if item.kept_in_float32 and item.dtype == "float16"]


def chosen_by(case: Case, run: Verification | None) -> list[Measurement]:
    """The keys of the recipe that ask for float16, or the dtype of the loaded model."""
    keys = float16_keys(case.recipe)
    measures = [Measurement(key, case.recipe.get(key), "recipe") for key in keys]
    if not keys and run is not None:
        measures.append(Measurement("dtype of the weights", run.dtype, "the loaded model"))
    return measures


def wider_dtypes(case: Case, paths: Sequence[str] = ()) -> tuple[Fix, ...]:
    """Fixes: bfloat16, float32, and float32 for the modules at ``paths`` alone."""
    keys = float16_keys(case.recipe)
    fixes = []
    if keys:
        fixes = [
            Fix("Train in bfloat16.", "unsafe", tuple(_edits(keys, "bfloat16"))),
            Fix(
                "On hardware without bfloat16, train in float32: twice the memory.",
                "unsafe",
                tuple(_edits(keys, "float32")),
            ),
        ]
    else:
        fixes = [Fix("Load the model in bfloat16, or float32 on hardware without it.", "manual")]
    if paths:
        fixes.append(
            Fix(
                f"If that takes too much memory, keep {quoted(paths, 4)} in float32 and cast "
                f"{'its' if len(paths) == 1 else 'their'} inputs and outputs; from_pretrained does "
                "this for the modules that the class lists, .half() does not.",
                "manual",
            )
        )
    return tuple(fixes)


def _edits(keys: tuple[str, ...], wanted: str) -> Iterator[Edit]:
    for key in keys:
        if key != "fp16":
            yield Edit(key, wanted)
            continue
        yield Edit("fp16", REMOVE)
        if wanted == "bfloat16":
            yield Edit("bf16", True)
