"""LD307: quantization puts a plain layer in the place of one that computes more."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom
from lora_doctor.rules._quantized import found


class QuantizedClassReplaced(Rule):
    """A layer whose class inherits from `nn.Linear` and has a forward of its own is replaced by a
    quantized linear layer, and what it computed beside the product is gone.

    ## What happens
    Loading works. The first forward raises where the model takes apart what such a layer gives out:
    `too many values to unpack (expected 2)` in Llama 4's mixture of experts.

    ## Why
    Llama 4's router is an `nn.Linear` that chooses the experts and returns scores and logits.
    transformers asks `isinstance(module, nn.Linear)`, makes a `Linear4bit` or `Linear8bitLt` of the
    same size and puts it there: that one returns a product and nothing else. The same inheritance
    makes LoRA fail on it (LD207).

    ## Versions
    Llama 4 in transformers 4 with bitsandbytes; any class of this kind in all.

    ## Fix
    Leave these layers in floating point, by a skip list that the installed transformers honours.
    The model was loaded with it and run, without adapters and with them.

    ## Links
    https://huggingface.co/docs/transformers/quantization/bitsandbytes
    """

    code = "LD307"
    name = "quantized-class-replaced"
    summary = "A layer with a forward of its own is replaced by a plain quantized one."
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
