"""LD312: transformers has no quantizer for the checkpoint, and loads it as if it were not
quantized."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules import _checkpoint


class QuantizationNotKnown(Rule):
    """The checkpoint's `quantization_config` names a method for which the installed transformers
    has no quantizer, or names no method.

    ## What happens
    transformers logs `Unknown quantization type ... Hence, we will skip the quantization` and loads
    the packed values into ordinary layers: shapes do not match, or FP8 values are used without
    their scales and the model outputs nonsense. Without a `quant_method` it raises.

    ## Why
    The format belongs to another program (ModelOpt's `hf_quant_config`, MLX) or to a newer
    transformers.

    ## Versions
    transformers before 4.38 knew bitsandbytes, GPTQ and AWQ only.

    ## Fix
    Train the unquantized checkpoint, or install a transformers that supports the method.

    ## Links
    https://huggingface.co/docs/transformers/quantization/overview
    """

    code = "LD312"
    name = "quantization-not-known"
    summary = "transformers has no quantizer for the checkpoint and loads it as not quantized."
    depth = "meta"
    symptoms = (
        Symptom(r"Unknown quantization type, got"),
        Symptom(r"has no `quant_method` attribute"),
    )
    examples = (
        Example("broken", "tests/folders/quantized_by_modelopt", {"target_modules": ["q_proj"]}),
        Example("healthy", "tests/folders/bitsandbytes_4bit", {"target_modules": ["q_proj"]}),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = _checkpoint.of(case)
        if found is None or found.known:
            return
        named = f"by {found.method!r}" if found.method else "with a method that is not named"
        yield self.finding(
            "error",
            (
                f"The checkpoint is quantized {named}, which the installed transformers does not "
                "support."
            ),
            location=Location("file", "config.json"),
            evidence=(
                _checkpoint.method(found),
                Measurement("transformers", found.unasked[:300], "its table of quantizers"),
            ),
            proof=Proof("measured", "looked up among the quantizers of the installed transformers"),
            fixes=(
                Fix(
                    "Train the unquantized checkpoint, or install a transformers that supports "
                    "this quantization.",
                    "manual",
                ),
            ),
            explains=("builds",),
        )
