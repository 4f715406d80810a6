"""LD306: an 8-bit layer gets an input with more than three dimensions."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Edit, Example, Finding, Fix, Rule, Symptom
from lora_doctor.rules._quantized import found


class MoreDimensionsThan8bitTakes(Rule):
    """The model passes a four-dimensional input to a linear layer; in 8 bits the layer takes two or
    three dimensions.

    ## What happens
    On a CPU, evaluation raises `The size of tensor a (16) must match the size of tensor b (64)` in
    `bitsandbytes/backends/default/ops.py`, and training runs. On a GPU bitsandbytes refuses both:
    `Only two or three dimensional matrices are supported for argument A`.

    ## Why
    `torch.nn.Linear` takes any number of leading dimensions, `Linear8bitLt` flattens at most three
    to two. Latent attention (DeepSeek's, and models derived from it) expands its compressed keys as
    `(batch, 1, length, rank)` since transformers 5; ProphetNet has a separate dimension for its
    n-grams. The size of the model does not matter. 4-bit layers accept such input.

    ## Versions
    bitsandbytes up to 0.50; DeepSeek's attention in transformers 5, ProphetNet in all.

    ## Fix
    Keep these layers in floating point; the model was loaded like this and run. Or load in 4 bits,
    which takes less memory and rounds more.

    ## Links
    https://huggingface.co/docs/bitsandbytes/reference/nn/linear8bit
    """

    code = "LD306"
    name = "more-dimensions-than-8bit-takes"
    summary = "An 8-bit layer gets an input with more than three dimensions."
    depth = "tiny"
    symptoms = (
        Symptom(r"Only two or three dimensional matrices are supported for argument A"),
        Symptom(r"int8_linear_matmul.*dimension"),
    )
    examples = (
        Example("broken", "arch:deepseek_v3", {"load_in_8bit": True}, {"transformers": ">=5.23"}),
        Example("broken", "arch:prophetnet",
                {"load_in_8bit": True, "model_class": "AutoModelForSeq2SeqLM"},
                {"transformers": ">=4.53"}),
        Example("healthy", "arch:deepseek_v3", {"load_in_4bit": True}, {"transformers": ">=5"}),
        Example("healthy", "arch:llama", {"load_in_8bit": True}, {"transformers": ">=4.53"}),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        in_4bit = Fix(
            "Or load in 4 bits: less memory, more rounding.",
            "unsafe",
            (Edit("load_in_8bit", False), Edit("load_in_4bit", True)),
        )
        yield from found(self, case, "input", in_4bit)
