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
    """The quantized model runs after loading and fails once it is prepared for training.

    ## What happens
    The first forward of QLoRA training raises `Expected attn_mask dtype to be bool or float or to
    match query dtype`: the attention mask is in half precision and the queries are not.

    ## Why
    `prepare_model_for_kbit_training` casts the weights that are not quantized to float32, but does
    not change the config. A model that creates its mask in the config's dtype then mixes two
    dtypes. Under autocast the queries are cast back, so `fp16` or `bf16` in the Trainer hides the
    problem.

    ## Versions
    PaliGemma in transformers 4.57; it runs in 4.53 and in 5. Without a `dtype`, transformers 4
    loads what it does not quantize in float16, so it also happens without any `dtype` setting.

    ## Fix
    Load with `dtype` float32: the preparation casts everything that is not quantized to float32
    anyway.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/quantization
    """

    code = "LD303"
    name = "preparation-mixes-dtypes"
    summary = "A quantized model no longer runs after prepare_model_for_kbit_training."
    depth = "tiny"
    about_training = True
    symptoms = (
        Symptom(
            r"Expected attn_mask dtype to be bool (or float )?or to match query dtype",
            "transformers 4.57",
        ),
        Symptom(r"Expected query, key, and value to have the same dtype"),
        Symptom(
            r"(?:mat1|self) and mat2 must have the same dtype|"
            r"expected (?:m1 and m2|mat1 and mat2) to have the same dtype",
        ),
        Symptom(r"expected scalar type (?:Half|BFloat16|Float) but found (?:Half|BFloat16|Float)"),
    )
    told_as = ("After prepare_model_for_kbit_training the forward fails because of mixed dtypes.",)
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
            "The quantized model runs after loading, but not after "
            f"prepare_model_for_kbit_training: {error.rstrip('.')}.",
            location=Location("recipe", "dtype"),
            evidence=(
                Measurement("before the preparation", "the forward runs", "a training batch"),
                Measurement("after it", error, broken.where),
                Measurement("dtype it is loaded in", str(dtype), "recipe"),
            ),
            proof=Proof("executed", "the quantized model was run before and after the preparation"),
            fixes=(
                Fix(
                    "Load in float32: the preparation casts everything that is not quantized "
                    "to it anyway.",
                    "safe",
                    (Edit("dtype", "float32"),),
                ),
            ),
            explains=("forward",),
        )
