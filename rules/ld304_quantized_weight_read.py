"""LD304: the model's own code reads the weight of a layer that quantization has replaced."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom
from lora_doctor.rules._quantized import found

#: A 4-bit weight in a product. In the layer's own forward the state of the quantization was lost.
_PACKED = r"mat1 and mat2 shapes cannot be multiplied \(\d+x\d+ and 1x\d+\)"


class QuantizedWeightRead(Rule):
    """The model reads the weight of a linear layer instead of calling the layer, and after
    quantization the weight holds packed integers.

    ## What happens
    Activations are cast to the dtype of the weight, which is now uint8 or int8, and dropout raises
    `result type Float can't be cast to the desired output type Byte`; without dropout nothing is
    raised and the model computes with integers. Or the weight is used in a matrix product directly:
    `mat1 and mat2 shapes cannot be multiplied (32x288 and 1x1152)`, `expected scalar type Float but
    found Char`. Or it is scaled or clamped in place, which destroys the packed values.

    ## Why
    A 4-bit weight is a column of bytes, an 8-bit one is int8 with its scale stored elsewhere. Only
    the layer's own forward can decode them. Code that reads the weight's dtype (T5's `wo` and its
    copies), passes it to `F.linear` (routers), multiplies with it (state-space layers) or rescales
    it (RWKV, Gemma 3n) cannot. Some classes exclude such layers with `_keep_in_fp32_modules`; these
    do not.

    ## Versions
    All versions of transformers and bitsandbytes. Which layers are read differs between releases,
    so the quantized model is run and every read of a weight is recorded.

    ## Fix
    Keep these layers in floating point, with a skip list that the installed transformers honours.
    The model was loaded with it and run, without adapters and with them. All other layers stay
    quantized.

    ## Links
    https://github.com/huggingface/transformers/issues/20287
    https://huggingface.co/docs/transformers/quantization/bitsandbytes
    """

    code = "LD304"
    name = "quantized-weight-read"
    summary = "The model's own code reads the weight of a quantized layer."
    depth = "tiny"
    symptoms = (
        Symptom(
            r"result type Float can't be cast to the desired output type "
            r"(Byte|Char|unsigned char|signed char)"
        ),
        Symptom(_PACKED, raised_in=r"^(?!.*bitsandbytes)"),
        Symptom(_PACKED, alone=True),
        Symptom(r"expected scalar type \w+ but found (Byte|Char)"),
    )
    examples = (
        Example("broken", "arch:longt5", {"load_in_4bit": True}, {"transformers": ">=4.53"},
                why="casts to the dtype of `wo`"),
        Example("broken", "arch:mamba", {"load_in_4bit": True}, {"transformers": ">=5"},
                why="multiplies with the weight of `dt_proj`"),
        Example("healthy", "arch:t5", {"load_in_4bit": True}, {"transformers": ">=4.53"},
                why="the same code, and a class that keeps `wo` in float32"),
        Example("healthy", "arch:longt5", {}, why="not quantized"),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        yield from found(self, case, "weight")
