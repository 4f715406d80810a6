"""LD532: packed samples attend to those before them in the row."""

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
    """Packed samples attend to those before them in the row.

    ## What happens
    Training runs, and tokens of one sample are predicted with an unrelated one before them. What it
    does to the result depends on the data; it is seldom meant.

    ## Why
    Packing puts several samples into a row. What keeps them apart is an attention that is told
    where each begins, and that is another setting.

    ## Versions
    Read in LLaMA-Factory 0.9.5 and axolotl 0.19. TRL with a transformers that finds the borders by
    the position ids keeps them apart; ms-swift refuses packing without flash attention.

    ## Fix
    `neat_packing` in LLaMA-Factory, an attention that respects borders in axolotl. Both change what
    the model learns.

    ## Links
    https://docs.axolotl.ai/docs/config-reference.html,
    https://huggingface.co/docs/trl/clis
    """

    code = "LD532"
    name = "packing-without-borders"
    summary = "Packed samples attend to those before them in the row."
    depth = "static"
    examples = (
        Example("broken", "tests/set_ups/llamafactory_packing.yaml"),
        Example("healthy", "tests/set_ups/llamafactory.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for remark in remarks(case, "packing"):
            yield finding_of(self, case, remark, "warning")
