"""LD532: packed samples attend to earlier samples in the same row."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Rule,
)
from lora_doctor.rules._set_up import finding_of, remarks


class PackingWithoutBorders(Rule):
    """Packed samples attend to earlier samples in the same row.

    ## What happens
    Training runs, and tokens of one sample are predicted with an unrelated sample in their context.
    The effect depends on the data; it is rarely intended.

    ## Why
    Packing puts several samples into one row. They are kept apart only if the attention knows where
    each sample begins, which is a separate setting.

    ## Versions
    Read in LLaMA-Factory 0.9.5 and axolotl 0.19. TRL keeps them apart if transformers derives the
    boundaries from the position ids; ms-swift refuses packing without flash attention.

    ## Fix
    `neat_packing` in LLaMA-Factory, an attention that respects sample boundaries in axolotl. Both
    change what the model learns.

    ## Links
    https://docs.axolotl.ai/docs/config-reference.html,
    https://huggingface.co/docs/trl/clis
    """

    code = "LD532"
    name = "packing-without-borders"
    summary = "Packed samples attend to earlier samples in the same row."
    depth = "static"
    examples = (
        Example("broken", "tests/set_ups/llamafactory_packing.yaml"),
        Example("healthy", "tests/set_ups/llamafactory.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for remark in remarks(case, "packing"):
            yield finding_of(self, case, remark, "warning")
