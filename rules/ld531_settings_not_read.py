"""LD531: settings of the set-up that its framework does not read."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Rule,
)
from lora_doctor.rules._set_up import finding_of, remarks


class SettingsNotRead(Rule):
    """Settings of the set-up that its framework does not read.

    ## What happens
    Training runs as if the settings were not there: without `use_peft: true` TRL trains all weights
    of the model, whatever `lora_r` says; ms-swift quantizes nothing with `quant_bits` alone.

    ## Why
    Frameworks have a switch for LoRA or quantization in addition to its settings, and do not warn
    about settings whose switch is off. LLaMA-Factory takes "false" in quotes for a text, which
    counts as true.

    ## Versions
    Read in LLaMA-Factory 0.9.5, axolotl 0.19, TRL 1.16 and ms-swift 4.6.

    ## Fix
    Set the switch. That changes what is trained, so it is not a safe fix. A setting that another
    one overrides is removed, which changes nothing.

    ## Links
    https://docs.axolotl.ai/docs/config-reference.html,
    https://huggingface.co/docs/trl/clis
    """

    code = "LD531"
    name = "settings-not-read"
    summary = "Settings of the set-up that its framework does not read."
    depth = "static"
    told_as = ("A setting of my config is ignored by the framework.",)
    examples = (
        Example("broken", "tests/set_ups/trl_without_use_peft.yaml"),
        Example("healthy", "tests/set_ups/trl.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for remark in remarks(case, "unread"):
            yield finding_of(self, case, remark, "warning")
