"""LD409: weights that were published in bfloat16 compute in float16."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Location,
    Measurement,
    Proof,
    Rule,
    float16_keys,
)
from lora_doctor.rules._float16 import chosen_by, measured, not_kept, run_of, wider_dtypes


class Float16OnBfloat16Weights(Rule):
    """The checkpoint is bfloat16 and the recipe computes in float16, which ends at 65504; nothing
    was measured yet.

    ## What happens
    Nothing, as long as every activation stays below 65504. A larger one becomes infinite and the
    loss NaN, from the first step or after some hundred, as in `LD402`.

    ## Why
    bfloat16 reaches as far as float32. A model that was trained in it has never had to stay below
    65504, and some do not, such as Gemma 3.

    Only the dtypes are compared, so that the finding says "may". Where the user's own weights were
    run, with `--depth full`, on a loaded model, on a factory's, their largest outputs were
    measured: `LD402` tells of them, and nothing is said here.

    ## Versions
    All.

    ## Fix
    bfloat16, which changes rounding and nothing else, or float32 on hardware without it.

    ## Links
    https://github.com/huggingface/transformers/pull/36832
    """

    code = "LD409"
    name = "float16-on-bfloat16-weights"
    summary = "A bfloat16 checkpoint computes in float16 and may leave its range."
    depth = "static"
    examples = (
        Example(
            "broken",
            "tests/folders/bfloat16_weights",
            {"target_modules": ["q_proj", "v_proj"], "dtype": "float16"},
            why="the config says bfloat16, and no weights were run",
        ),
        Example(
            "healthy",
            "tests/folders/bfloat16_weights",
            {"target_modules": ["q_proj", "v_proj"], "dtype": "bfloat16"},
        ),
        Example(
            "healthy",
            "tests.models:tiny_llama",
            {"target_modules": ["q_proj", "v_proj"], "dtype": "float16"},
            why="measured: nothing comes near",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        keys = float16_keys(case.recipe)
        if not keys:
            return
        run = run_of(case)
        if measured(run) or not_kept(run):
            return  # LD402 has numbers, LD408 modules: both say more than a dtype
        native, where = _native_dtype(case)
        if native is None:
            raise EvidenceError(
                f"nothing is known of the weights of {case.source}: neither their dtype nor, "
                "without --depth full, how large the numbers get"
            )
        if native != "bfloat16":
            return
        yield self.finding(
            "warning",
            "The weights are bfloat16 and the recipe computes in float16: what is larger than "
            "65504 may overflow.",
            location=Location("recipe", keys[0]),
            evidence=(
                Measurement("dtype of the weights", native, where),
                *chosen_by(case, None),
            ),
            proof=Proof("inferred", "from the dtypes; --depth full measures the activations"),
            fixes=wider_dtypes(case),
        )


def _native_dtype(case: Case) -> tuple[str | None, str]:
    """The dtype in which the weights were published, and where that stands."""
    if case.has("static"):
        native = case.static.native_dtype
        if native is not None:
            return native[0].removeprefix("torch."), f"config.json, {native[1]}"
    if case.reaches("meta") and case.has("structure") and case.source.kind != "arch":
        return case.structure.native_dtype, "the model's config"
    return None, ""
