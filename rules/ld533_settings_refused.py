"""LD533: settings that make the framework exit before training."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Rule,
    Symptom,
)
from lora_doctor.rules._set_up import finding_of, remarks


class SettingsRefused(Rule):
    """Settings that make the framework exit before training.

    ## What happens
    The framework raises while it reads its arguments, or when it loads the model.

    ## Why
    Two settings exclude each other, or one needs another that is missing; or a value is none that
    the argument can have: of its annotation, of the choices for its parser, of the enumeration that
    its class makes of it, or of those that the installed trainers go through before they raise.
    LLaMA-Factory takes a number in quotes for a text; the others make a number of it.

    ## Versions
    The checks of LLaMA-Factory and axolotl are read off the source of the installed release, else
    those of LLaMA-Factory 0.9.5 and axolotl 0.19 are known. Read in ms-swift 4.6.

    ## Fix
    The missing setting, where there is only one choice.

    ## Links
    https://docs.axolotl.ai/docs/config-reference.html,
    https://huggingface.co/docs/trl/clis
    """

    code = "LD533"
    name = "settings-refused"
    summary = "Settings that make the framework exit before training."
    depth = "static"
    symptoms = (
        Symptom(
            r"\b(?:Value|Assertion)Error: (?!Some specified arguments)\S",
            raised_in=r"(?:llamafactory|llmtuner)[\\/](?:hparams|model[\\/](?:adapter|model_utils"
            r"[\\/]quantization)\.py)|swift[\\/](?:llm[\\/])?arguments?[\\/]"
            r"|axolotl[\\/]utils[\\/](?:config|schemas)\b",
        ),
        Symptom(r"validation errors? for Axolotl\w*Config"),
        # As their argument parsers and model loaders say it, without the frames.
        Symptom(
            r"\bis only (?:valid for (?:the )?|compatible with the )(?:Freeze or )?LoRA\b"
            r"|\bCannot (?:use LoRA with GaLore|create new adapter upon a quantized)"
            r"|\bCannot (?:resize embedding layers of|merge adapters to) a quantized model"
            r"|\bCannot (?:specify `val_size` if|use device map for quantized models)"
            r"|\bCannot initialize PiSSA adapter on quantized models"
            r"|\bDoRA is not compatible with PTQ-quantized models"
            r"|\bQuantized model only accepts a single adapter"
            r"|\bQuantized models can only be used for the LoRA"
            r"|\bWe only accept 4-bit or 8-bit quantization"
            r"|\bCannot use multiple adapters in DeepSpeed"
            r"|\bincompatible with (?:DeepSpeed ZeRO-3|PTQ-quantized models|S\^2-Attn)"
            r"|\bPlease specify dataset for training\b|`reward_model` is necessary for PPO"
            r"|\bcannot be set as True except SFT",
            "LLaMA-Factory",
            alone=True,
            weight=-1,
        ),
        Symptom(
            r"\b(?:Packing|Streaming) and lazy_tokenize are incompatible"
            r"|\b(?:DeepSpeed|FSDP2) is not compatible with `?(?:device_map|DeepSpeed)"
            r"|\bPlease set the quant_bits\. args\.quant_bits",
            "ms-swift",
            alone=True,
        ),
    )
    examples = (
        Example("broken", "tests/set_ups/axolotl_qlora_without_4bit.yaml"),
        Example("healthy", "tests/set_ups/axolotl.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for remark in remarks(case, "refused"):
            yield finding_of(self, case, remark, "error")
