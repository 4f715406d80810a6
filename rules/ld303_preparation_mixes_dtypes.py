"""LD303: a quantized model no longer runs after ``prepare_model_for_kbit_training``."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
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


class PreparationMixesDtypes(Rule):
    """The quantized model runs as it is loaded, and fails once it is prepared for training.

    ## What happens
    The first forward of QLoRA training raises `Expected attn_mask dtype to be bool or float or to
    match query dtype`: the attention mask is in half precision and what it masks is not.

    ## Why
    `prepare_model_for_kbit_training` casts the weights that are not quantized to float32, in the
    model and not in its config. A model that makes its mask in the dtype that its config names then
    mixes two. Under autocast the queries are cast back, so that `fp16` or `bf16` in the Trainer
    hides it.

    ## Versions
    PaliGemma in transformers 4.57; it runs in 4.53 and in 5. Without a `dtype`, transformers 4
    loads what it does not quantize in float16, so that it happens to those who say nothing.

    ## Fix
    Load with `dtype` float32: what is not quantized is made float32 by the preparation anyway.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/quantization
    """

    code = "LD303"
    name = "preparation-mixes-dtypes"
    summary = "A quantized model no longer runs after prepare_model_for_kbit_training."
    depth = "tiny"
    symptoms = (
        Symptom(
            r"Expected attn_mask dtype to be bool (or float )?or to match query dtype",
            "transformers 4.57",
        ),
        Symptom(
            r"mat1 and mat2 must have the same dtype|"
            r"expected (?:m1 and m2|mat1 and mat2) to have the same dtype",
        ),
        Symptom(r"expected scalar type (?:Half|BFloat16|Float) but found (?:Half|BFloat16|Float)"),
    )
    examples = (
        Example(
            "broken",
            "arch:paligemma",
            {"load_in_4bit": True, "dtype": "bfloat16"},
            {"transformers": ">=4.57,<4.58"},
        ),
        Example("healthy", "arch:paligemma", {"load_in_4bit": True, "dtype": "float32"},
                {"transformers": ">=4.53"}),
        Example("healthy", "arch:llama", {"load_in_4bit": True, "dtype": "bfloat16"}),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        broken = case.verification.error_once_prepared
        if broken is None:
            return
        error = f"{broken.type}: {broken.message}"
        dtype = case.asked.get("dtype") or "the library's own"
        yield self.finding(
            "error",
            "The quantized model runs as it is loaded, and not after "
            f"prepare_model_for_kbit_training: {error.rstrip('.')}.",
            location=Location("recipe", "dtype"),
            evidence=(
                Measurement("before the preparation", "the forward runs", "a training batch"),
                Measurement("after it", error, broken.where),
                Measurement("dtype in which it is loaded", str(dtype), "recipe"),
            ),
            proof=Proof("executed", "both were run on the quantized model"),
            fixes=(
                Fix(
                    "Load in float32, which the preparation makes of everything that is not "
                    "quantized anyway.",
                    "safe",
                    (Edit("dtype", "float32"),),
                ),
            ),
            explains=("forward",),
        )
