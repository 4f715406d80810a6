"""LD312: transformers has no quantizer for the checkpoint, and loads it as if it had none."""

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
    """`quantization_config` of the checkpoint names a method that the installed transformers has no
    quantizer for, or none at all.

    ## What happens
    transformers logs `Unknown quantization type ... Hence, we will skip the quantization` and puts
    the packed numbers into ordinary layers: shapes do not match, or FP8 numbers are taken without
    their scales and the model says nothing sensible. Without a `quant_method` it raises.

    ## Why
    The format belongs to another program (ModelOpt's `hf_quant_config`, MLX) or to a newer
    transformers.

    ## Versions
    transformers before 4.38 knew bitsandbytes, GPTQ and AWQ only.

    ## Fix
    Train the checkpoint that it was quantized from, or install a transformers that knows it.

    ## Links
    https://huggingface.co/docs/transformers/quantization/overview
    """

    code = "LD312"
    name = "quantization-not-known"
    summary = "transformers has no quantizer for the checkpoint and loads it as if plain."
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
        named = f"by {found.method!r}" if found.method else "by a method that it does not name"
        yield self.finding(
            "error",
            f"The checkpoint is quantized {named}, which this transformers does not know.",
            location=Location("file", "config.json"),
            evidence=(
                _checkpoint.method(found),
                Measurement("transformers", found.unasked[:300], "its table of quantizers"),
            ),
            proof=Proof("measured", "the installed transformers was asked for the quantizer"),
            fixes=(
                Fix(
                    "Train the checkpoint that it was quantized from, or install a transformers "
                    "that knows this quantization.",
                    "manual",
                ),
            ),
            explains=("builds",),
        )
