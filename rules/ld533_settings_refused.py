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
    Two settings exclude each other, or one needs another that is missing.

    ## Versions
    Read in LLaMA-Factory 0.9.5, axolotl 0.19 and ms-swift 4.6.

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
            raised_in=r"(?:llamafactory|llmtuner)[\\/]hparams|swift[\\/](?:llm[\\/])?arguments?[\\/]"
            r"|axolotl[\\/]utils[\\/](?:config|schemas)\b",
        ),
        Symptom(r"validation errors? for Axolotl\w*Config"),
    )
    examples = (
        Example("broken", "tests/set_ups/axolotl_qlora_without_4bit.yaml"),
        Example("healthy", "tests/set_ups/axolotl.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for remark in remarks(case, "refused"):
            yield finding_of(self, case, remark, "error")
