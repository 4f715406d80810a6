"""LD305: the output of a quantized layer is modified in place, which autograd refuses."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Rule, Symptom
from lora_doctor.rules._quantized import found


class QuantizedOutputChanged(Rule):
    """The model modifies the output of a layer in place, which fails when bitsandbytes computed
    that output.

    ## What happens
    The first forward in training mode raises `Output 0 of MatMul4Bit is a view and is being
    modified inplace` (`MatMul8bitLt`, `MatMul8bitFp` in 8 bits). In eval mode the model runs.

    ## Why
    SpecAugment overwrites spans of the feature projection's output with a learned vector, in place.
    That is allowed for the output of torch's linear layer. bitsandbytes has its own backward and
    returns a view of its result, and autograd does not allow modifying such a view. A dropout above
    zero in between makes a copy and hides the problem.

    ## Versions
    wav2vec 2.0 and the models made after it (HuBERT, WavLM, UniSpeech, SpeechT5), in all of
    transformers with bitsandbytes; seen on a CPU.

    ## Fix
    Keep this one layer in floating point; the model was loaded like this and run. Turning
    SpecAugment off (`mask_time_prob` and `mask_feature_prob` 0 in the model's config) also helps,
    but changes training: there is then no augmentation.

    ## Links
    https://huggingface.co/docs/transformers/quantization/bitsandbytes
    """

    code = "LD305"
    name = "quantized-output-changed"
    summary = "The model's code modifies the output of a quantized layer in place."
    depth = "tiny"
    symptoms = (
        Symptom(r"Output \d+ of MatMul(4Bit|8bitLt|8bitFp)(Backward)? is a view and is being mod"),
    )
    examples = (
        Example("broken", "arch:speecht5",
                {"load_in_4bit": True, "model_class": "AutoModelForSpeechSeq2Seq"},
                {"transformers": ">=4.53"}),
        Example("broken", "arch:wav2vec2", {"load_in_4bit": True, "model_class": "AutoModelForCTC"},
                {"transformers": ">=4.53"}),
        Example("healthy", "arch:whisper", {"load_in_4bit": True}, {"transformers": ">=4.53"},
                why="masks a copy of its features, before any layer"),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        plain = Fix(
            "Or load without SpecAugment: mask_time_prob and mask_feature_prob 0 in the config. "
            "The model then trains without augmentation.",
            "manual",
        )
        yield from found(self, case, "output", plain)
