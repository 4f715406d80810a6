"""LD307: quantization replaces a layer that computes more than a product by a plain one."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom
from lora_doctor.rules._quantized import found


class QuantizedClassReplaced(Rule):
    """A layer whose class inherits from `nn.Linear` but has its own forward is replaced by a
    quantized linear layer, and everything it computed besides the product is lost.

    ## What happens
    Loading works. The first forward raises where the model unpacks the output of such a layer: `too
    many values to unpack (expected 2)` in Llama 4's mixture of experts.

    ## Why
    Llama 4's router is an `nn.Linear` that chooses the experts and returns scores and logits.
    transformers checks `isinstance(module, nn.Linear)` and replaces the module by a `Linear4bit` or
    `Linear8bitLt` of the same size, which returns only the product. The same inheritance makes LoRA
    fail on it (LD207).

    ## Versions
    Llama 4 in transformers 4 with bitsandbytes; any class of this kind in all.

    ## Fix
    Keep these layers in floating point, with a skip list that the installed transformers honours.
    The model was loaded with it and run, without adapters and with them.

    ## Links
    https://huggingface.co/docs/transformers/quantization/bitsandbytes
    """

    code = "LD307"
    name = "quantized-class-replaced"
    summary = "A layer with its own forward is replaced by a plain quantized one."
    depth = "tiny"
    symptoms = (
        Symptom(r"self\.router\((?s:.*)too many values to unpack", "transformers 4, Llama 4"),
    )
    examples = (
        Example("broken", "arch:llama4_text", {"load_in_4bit": True},
                {"transformers": ">=4.53,<5"}, why="the router gives out two things"),
        Example("broken", "arch:llama4_text", {"load_in_8bit": True},
                {"transformers": ">=4.53,<5"}),
        Example("healthy", "arch:llama4_text", {}, {"transformers": ">=4.53"},
                why="not quantized"),
        Example("healthy", "arch:mixtral", {"load_in_4bit": True}, {"transformers": ">=4.53"},
                why="its router is no linear layer, or a plain one"),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        yield from found(self, case, "class")
