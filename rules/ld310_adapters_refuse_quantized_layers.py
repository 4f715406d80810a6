"""LD310: PEFT cannot adapt the layers of the checkpoint's quantization."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    quoted,
)
from lora_doctor.rules import _checkpoint


class AdaptersRefuseQuantizedLayers(Rule):
    """PEFT can adapt the linear layers of this model, but not the layers that the checkpoint's
    quantization replaces them with.

    ## What happens
    `get_peft_model` raises on the loaded model: `'Linear' object has no attribute 'weight'` for
    weights that compressed-tensors packs, `Target module BitLinear() is not supported`,
    `TorchaoLoraLinear only supports int8 weights for now`.

    ## Why
    PEFT has its own LoRA layer for each quantization that it supports, and treats any other layer
    as linear, which needs a `weight`.

    ## Versions
    PEFT supports more formats with each release; the installed one was run.

    ## Fix
    Load the weights in floating point where this release can, such as
    `CompressedTensorsConfig(dequantize=True)`.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/quantization
    """

    code = "LD310"
    name = "adapters-refuse-quantized-layers"
    summary = "PEFT cannot adapt the layers of the checkpoint's quantization."
    depth = "meta"
    symptoms = (
        Symptom(r"_get_in_out_features(?s:.*)'Linear' object has no attribute 'weight'"),
        Symptom(
            r"'(?:WQLinear\w*|(?:\w+)?Quant(?:ized)?Linear\w*)' object has no attribute 'weight'",
        ),
        Symptom(r"TorchaoLoraLinear only supports int8 weights"),
        Symptom(
            r"Target module \w*(QuantLinear|QuantizedLinear|BitLinear|WQLinear|HiggsLinear)\w*\b"
            r".{0,400}?is not supported"
            r"(\.( Currently, only (the following modules|`?torch\.nn\.Linear))?)?"
        ),
    )
    descriptions = (
        Symptom(
            r"\A(?=.*\b(?:gptq|awq|\w*QuantLinear|WQLinear\w*)\b)(?=.*\b(?:peft|lora|get_peft_"
            r"model)\b)(?=.*\b(?:not|n't) (?:be )?(?:recogni[sz]|support)\w*).+"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/compressed_tensors_packed",
            {"target_modules": ["q_proj", "v_proj"]},
            {"transformers": ">=5.23", "compressed-tensors": ">=0.15"},
        ),
        Example(
            "healthy",
            "tests/folders/fp8",
            {"target_modules": ["q_proj", "v_proj"]},
            {"transformers": ">=5.23"},
            why="PEFT takes such a layer for a linear one, which it can be",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = _checkpoint.of(case)
        if found is None or found.injection_error is None:
            return
        if not case.structure.injection.ok:
            return  # it does not fit the plain class either
        error, layers = found.injection_error, found.layers
        fix = _checkpoint.dequantizing(case, found) or _checkpoint.without_quantization(found)
        names = dict.fromkeys(layer.class_name for layer in layers)
        yield self.finding(
            "error",
            f"PEFT cannot put adapters on the {quoted(names, 3)} layers of {found.method}.",
            location=Location("module", layers[0].examples[0]),
            evidence=(
                _checkpoint.method(found),
                *(
                    Measurement(
                        f"{layer.class_name} with {quoted(layer.parameters, 4)}",
                        f"{layer.count} layers: {quoted(layer.examples, 2)}",
                        layer.python_module,
                    )
                    for layer in layers
                ),
                Measurement("get_peft_model", f"{error.type}: {error.message[:300]}",
                            "installed PEFT, meta device"),
            ),
            proof=Proof("executed", "the quantizer replaced the layers of the full-size model on "
                        "the meta device, and PEFT raised this"),
            fixes=(fix,),
            explains=("attaches",),
        )  # fmt: skip
