"""LD413: flash attention, which supports only 16-bit inputs, on a model that computes in
float32."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    REMOVE,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._attention import KEY

_TARGETS = {"target_modules": ["q_proj", "v_proj"]}


class FlashAttentionInFloat32(Rule):
    """The recipe asks for flash attention, and its inputs are neither float16 nor bfloat16, by the
    dtype of the weights or by autocast.

    ## What happens
    The first step on the GPU ends at `RuntimeError: FlashAttention only support fp16 and bf16 data
    type`. Without a GPU the failure cannot be seen: there is no kernel.

    ## Why
    The kernel computes in 16 bits. transformers casts float32 inputs for it, such as those after
    the float32 norms of `prepare_model_for_kbit_training`: to the dtype of the autocast, otherwise
    to the dtype the model is loaded in. Where that is float32 too, nothing is cast.

    ## Versions
    Any. Without `dtype`, transformers 5 loads in the dtype of the checkpoint, transformers 4 in
    float32: there it has to be set.

    ## Fix
    `dtype: bfloat16`, or `bf16: true` for float32 weights under autocast, or another attention.

    ## Links
    https://github.com/Dao-AILab/flash-attention/issues/398
    """

    code = "LD413"
    name = "flash-attention-in-float32"
    summary = "The recipe asks for flash attention, and the model computes in float32."
    depth = "static"
    symptoms = (
        Symptom(r"FlashAttention only supports? (fp16 and bf16|fp16, bf16)"),
        Symptom(
            r"Flash ?Attention.{0,20} only supports? .{0,40}(float16|fp16|half).{0,60}dtype",
            aside=True,
        ),
        Symptom(
            r"(?i)flash.?attention\w* (?:only )?supports? (?:only )?(?:fp16|float16|half|bf16)"
        ),
        Symptom(
            r"(?i)use Flash ?Attention.{0,5} without specifying a (?:torch )?dtype", aside=True
        ),
    )
    told_as = ("Flash attention fails because the LoRA weights are in float32.",)
    examples = (
        Example("broken", "arch:llama", {**_TARGETS, KEY: "flash_attention_2", "dtype": "float32"}),
        Example(
            "healthy",
            "arch:llama",
            {**_TARGETS, KEY: "flash_attention_2", "dtype": "bfloat16"},
            depth="static",
        ),
        Example(
            "healthy",
            "arch:llama",
            {**_TARGETS, KEY: "flash_attention_2", "dtype": "float32", "bf16": True},
            depth="static",
            why="autocast hands bfloat16 to the kernel",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        asked = case.recipe.get(KEY)
        if not isinstance(asked, str) or not asked.startswith("flash_attention"):
            return
        dtype = case.recipe.get("dtype")
        if dtype is None and not case.recipe.quantized and _loads_in_float32(case):
            dtype = "float32"
            said = "not set: float32, the default of the installed transformers"
        else:
            said = str(dtype)
        if dtype != "float32" or case.recipe.get("fp16") or case.recipe.get("bf16"):
            return
        yield self.finding(
            "error",
            f"{asked} supports only float16 and bfloat16, and the model computes in float32: "
            "the first step on a GPU fails.",
            location=Location("recipe", KEY),
            evidence=(
                Measurement(KEY, asked, "recipe"),
                Measurement("dtype", said, "recipe"),
                Measurement("autocast", "neither bf16 nor fp16", "recipe"),
            ),
            proof=Proof("inferred", ("from the dtypes that the kernel supports; it runs on a "
                                    "GPU only")),
            fixes=(
                Fix(f"Leave the choice to transformers: remove {KEY}.", "unsafe",
                    (Edit(KEY, REMOVE),)),
                Fix("Load the model in bfloat16.", "unsafe", (Edit("dtype", "bfloat16"),)),
            ),
            explains=("forward",),
        )  # fmt: skip


def _loads_in_float32(case: Case) -> bool:
    """Whether the installed transformers loads in float32 where no dtype is given."""
    version = case.environment.version("transformers") or ""
    return version.partition(".")[0].isdigit() and int(version.partition(".")[0]) < 5
