"""LD409: a bfloat16 checkpoint computes in float16."""

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
    float16_keys,
)
from lora_doctor.rules._float16 import chosen_by, measured, not_kept, run_of, wider_dtypes


class Float16OnBfloat16Weights(Rule):
    """The checkpoint is bfloat16 and the recipe computes in float16, whose largest value is 65504;
    activations were not measured yet.

    ## What happens
    Nothing, as long as every activation stays below 65504. A larger one becomes inf and the loss
    NaN, from the first step or after a few hundred, as in `LD402`.

    ## Why
    bfloat16 has the range of float32. A model that was trained in it never had to stay below 65504,
    and some do not, such as Gemma 3.

    The dtype of the weights is that of most tensors by their headers, otherwise the one in
    config.json. A recipe that leaves the dtype open (`auto`) gets the one in config.json, which may
    differ.

    Only the dtypes are compared, so the finding says "may". Where the user's own weights were run
    (with `--depth full`, on a loaded model, on the model of a factory), their largest outputs were
    measured: `LD402` reports them, and this rule reports nothing.

    ## Versions
    All.

    ## Fix
    bfloat16, which changes only rounding, or float32 on hardware without bfloat16.

    ## Links
    https://github.com/huggingface/transformers/pull/36832
    """

    code = "LD409"
    name = "float16-on-bfloat16-weights"
    summary = "A bfloat16 checkpoint computes in float16 and may overflow."
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
        by_config = not keys and _config_asks(case)
        if not keys and not by_config:
            return
        run = run_of(case)
        if measured(run) or not_kept(run):
            return  # LD402 has numbers, LD408 modules: both say more than a dtype
        native, where = _native_dtype(case)
        if native is None:
            raise EvidenceError(
                f"nothing is known about the weights of {case.source}: neither their dtype "
                "nor, without --depth full, how large the activations get"
            )
        if native != "bfloat16":
            return
        asks = "config.json" if by_config else "the recipe"
        yield self.finding(
            "warning",
            f"The weights are bfloat16 and {asks} computes in float16: activations above 65504 "
            "would overflow; whether any are that large was not measured.",
            location=Location("recipe", keys[0] if keys else "dtype"),
            evidence=(
                Measurement("dtype of the weights", native, where),
                *(_config_says(case) if by_config else chosen_by(case, None)),
            ),
            proof=Proof(
                "inferred", ("the dtypes were compared; --depth full measures the activations")
            ),
            fixes=(_AS_STORED,) if by_config else wider_dtypes(case),
        )


#: Of what config.json says, against the weights beside it.
_AS_STORED = Fix(
    "Load the weights in bfloat16, as they are stored.",
    "unsafe",
    (Edit("dtype", "bfloat16"),),
)
#: What safetensors calls the dtype.
_STORED = "BF16"


def _config_asks(case: Case) -> bool:
    """Whether the dtype is left to config.json, and that says float16."""
    dtype, origin = case.recipe.get("dtype"), case.recipe.origins.get("dtype")
    left_open = dtype == "auto" or origin == "proposed"
    native = case.static.native_dtype if left_open and case.has("static") else None
    return native is not None and native[0].removeprefix("torch.") == "float16"


def _config_says(case: Case) -> tuple[Measurement, ...]:
    native = case.static.native_dtype
    return (Measurement(native[1], native[0], case.static.where("config.json")),) if native else ()


def _native_dtype(case: Case) -> tuple[str | None, str]:
    """The dtype in which the weights were published, and where that stands."""
    if case.has("static"):
        weights = case.static.weights.value
        if weights is not None and next(iter(weights.dtypes), None) == _STORED:
            return "bfloat16", "headers of the weights"
        native = case.static.native_dtype
        if native is not None:
            return native[0].removeprefix("torch."), f"config.json, {native[1]}"
    if case.reaches("meta") and case.has("structure") and case.source.kind != "arch":
        return case.structure.native_dtype, "the model's config"
    return None, ""
