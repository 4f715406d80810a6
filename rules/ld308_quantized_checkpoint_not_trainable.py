"""LD308: the checkpoint's quantization does not support training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Location,
    Measurement,
    Proof,
    Rule,
    Severity,
    Symptom,
)
from lora_doctor.rules import _checkpoint

if TYPE_CHECKING:
    from lora_doctor.rule_api import CheckpointQuantization


class QuantizedCheckpointNotTrainable(Rule):
    """The checkpoint's `config.json` has a `quantization_config`, and according to the installed
    transformers' quantizer its layers do not support training, not even of adapters.

    ## What happens
    The model loads and generates. The Trainer raises `The model you are trying to fine-tune is
    quantized with ... but that quantization method do not support training`; your own training loop
    fails in the backward of the kernels, or gets no gradient through them. Where a package or a
    device is missing, transformers converts some formats to bfloat16 while loading, with a warning;
    training then runs in three to four times the memory, until the package is installed.

    ## Why
    The kernels of many formats (MXFP4, VPTQ, SpQR, HIGGS, BitNet, FBGEMM's FP8, torchao in 4 bits)
    implement only a forward. The quantizers of transformers declare in `is_trainable` whether
    gradients flow through their layers, and the Trainer checks that.

    ## Versions
    transformers 4.38 and later; which formats can be trained grows with each release
    (fine-grained FP8 since 5.23).

    ## Fix
    Load the weights in floating point where this release can (`Mxfp4Config(dequantize=True)`); the
    base model then takes as much memory as in bfloat16. Otherwise train the unquantized checkpoint,
    in 4 bits with bitsandbytes if memory is short.

    ## Links
    https://huggingface.co/docs/transformers/quantization/mxfp4
    https://huggingface.co/docs/transformers/quantization/overview
    """

    code = "LD308"
    name = "quantized-checkpoint-not-trainable"
    summary = "The checkpoint's quantization does not support training."
    depth = "meta"
    about_training = True
    symptoms = (
        Symptom(r"quantized with [\w.\-]+ but that quantization method do(es)? not support train"),
        Symptom(r"MXFP4 quantization don't support training"),
        Symptom(r"version \(.{1,40}?\) doesn't support training"),
    )
    descriptions = (
        Symptom(
            r"\b(?:fp8|awq|gptq|mxfp4)\b.{0,60}\b(?:not|cannot|can.t) (?:be )?(?:train"
            r"|fine-?tun)"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/mxfp4",
            {"target_modules": ["q_proj", "v_proj"]},
            {"transformers": ">=4.57"},
            why="as gpt-oss is published",
        ),
        Example(
            "broken",
            "tests/folders/bitnet",
            {"target_modules": ["q_proj", "v_proj"]},
            {"transformers": ">=4.53"},
        ),
        Example(
            "healthy",
            "tests/folders/mxfp4",
            {"target_modules": ["q_proj", "v_proj"], "dequantize": True},
            {"transformers": ">=4.57"},
            why="loaded in floating point",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = _checkpoint.of(case)
        if found is None or found.trainable is not False or found.dequantized:
            return
        severity: Severity = "error" if found.stays else "warning"
        fix = _checkpoint.dequantizing(case, found) or _checkpoint.without_quantization(found)
        yield self.finding(
            severity,
            _message(found),
            location=Location("file", "config.json"),
            evidence=(
                _checkpoint.method(found),
                Measurement("is_trainable", False, "the installed transformers' quantizer"),
                *_said(found),
            ),
            proof=Proof(
                "measured", ("its quantizer was created from the config, and its is_trainable read")
            ),
            fixes=(fix,),
            explains=("builds", "attaches", "forward", "gradients") if found.stays else (),
        )


def _message(found: CheckpointQuantization) -> str:
    if found.stays:
        return f"The checkpoint is quantized with {found.method}, which does not support training."
    return (
        f"The checkpoint is quantized with {found.method}, which does not support training; "
        "with the packages installed here transformers loads it in floating point instead."
    )


def _said(found: CheckpointQuantization) -> Iterator[Measurement]:
    if found.trainable_words:
        yield Measurement("quantizer says", found.trainable_words[:300], "installed transformers")
    if found.falls_back:
        yield Measurement("while loading", found.falls_back[:300], "installed transformers")
