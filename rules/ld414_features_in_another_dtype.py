"""LD414: a half-precision model that fails on float32 features, which is what processors return."""

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


class FeaturesInAnotherDtype(Rule):
    """The weights are loaded in float16 or bfloat16, the image or audio features are float32, and
    nothing casts them.

    ## What happens
    The first step raises `Input type (float) and bias type (c10::BFloat16) should be the same`.

    ## Why
    Feature extractors and image processors return float32, and the Trainer moves a batch to the
    device without casting it. Most vision towers in transformers cast their input to their own
    dtype. Whisper, wav2vec 2.0 and other audio models do not.

    ## Versions
    All. Whether a class casts is tested by running its forward on features of both dtypes.

    ## Fix
    Set `bf16: true` (or `fp16: true`), and autocast casts the features to the dtype of the weights.
    Or cast them in the collator: `batch["input_features"].to(model.dtype)`. If your collator
    already does this, no change is needed. Models loaded in 4 or 8 bits are not affected:
    `prepare_model_for_kbit_training` converts their convolutions to float32.

    ## Links
    https://huggingface.co/docs/transformers/perf_train_gpu_one
    """

    code = "LD414"
    name = "features-in-another-dtype"
    summary = "The half-precision model fails on float32 features, which is what processors return."
    depth = "tiny"
    symptoms = (
        Symptom(
            r"Input type \((?:torch\.(?:cuda\.)?)?Float(?:Tensor)?\) and (?:weight|bias) type "
            r"\((?:torch\.(?:cuda\.)?)?(?:c10::)?(?:Half|BFloat16)(?:Tensor)?\)",
        ),
        Symptom(r"Input type \(float\) and (?:weight|bias) type \(c10::(?:Half|BFloat16)\)"),
    )
    examples = (
        Example(
            "broken",
            "arch:whisper",
            {"target_modules": ["q_proj", "v_proj"], "dtype": "bfloat16"},
            why="its bfloat16 convolutions reject float32 input",
        ),
        Example(
            "healthy",
            "arch:whisper",
            {"target_modules": ["q_proj", "v_proj"], "dtype": "bfloat16", "bf16": True},
            why="autocast casts the features",
        ),
        Example(
            "healthy",
            "arch:clip",
            {
                "model_class": "CLIPModel",
                "target_modules": ["q_proj", "v_proj"],
                "dtype": "bfloat16",
            },
            why="its vision tower casts its input",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = case.verification
        cast = [note for note in seen.notes if note.kind == "features-cast"]
        if not cast or case.recipe.quantized:
            return
        model = case.structure.model_class
        mixed = "bf16" if seen.dtype == "bfloat16" else "fp16"
        yield self.finding(
            "warning",
            f"{model} in {seen.dtype} raises an error on float32 features, which its processor "
            f"returns, unless {mixed} is set or the collator casts them.",
            location=Location("recipe", "dtype"),
            evidence=(
                Measurement("forward on float32 features", cast[0].reason[:200],
                            f"{seen.depth} model in {seen.dtype}"),
                Measurement(f"forward on features in {seen.dtype}", "runs", f"{seen.depth} model"),
                Measurement("autocast", case.recipe.mixed_precision or "neither bf16 nor fp16",
                            "recipe"),
            ),
            proof=Proof("executed", "the forward was run on features of both dtypes"),
            fixes=(
                Fix(f"Enable autocast with {mixed}: true.", "unsafe", (Edit(mixed, True),)),
                Fix("Cast the features to the dtype of the model in the collator.", "manual"),
            ),
        )  # fmt: skip
