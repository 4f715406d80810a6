"""LD305: the output of a quantized layer is changed in place, which autograd refuses."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Rule, Symptom
from lora_doctor.rules._quantized import found


class QuantizedOutputChanged(Rule):
    """The model writes into the output of a layer; when bitsandbytes computes it, that is refused.

    ## What happens
    The first forward in training mode raises `Output 0 of MatMul4Bit is a view and is being
    modified inplace` (`MatMul8bitLt`, `MatMul8bitFp` in 8 bits). In eval mode the model runs.

    ## Why
    SpecAugment puts a learned vector over spans of what the feature projection gave out, in place.
    The output of a linear layer of torch may be written to. bitsandbytes has a backward of its own
    and hands out a view of its result, and autograd does not let anybody change such a view. A
    dropout above zero in between makes a copy and hides it.

    ## Versions
    wav2vec 2.0 and the models made after it (HuBERT, WavLM, UniSpeech, SpeechT5), in all of
    transformers with bitsandbytes; seen on a CPU.

    ## Fix
    Leave this one layer in floating point; the model was loaded so and run. Turning SpecAugment off
    (`mask_time_prob` and `mask_feature_prob` 0 in the model's config) also ends it, and is another
    training: there is no augmentation then.

    ## Links
    https://huggingface.co/docs/transformers/quantization/bitsandbytes
    """

    code = "LD305"
    name = "quantized-output-changed"
    summary = "The model's code changes the output of a quantized layer in place."
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
