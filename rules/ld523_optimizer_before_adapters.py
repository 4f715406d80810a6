"""LD523: the optimizer is made before the adapters."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, optimizer_too_early
from lora_doctor.rules._program import slips


class OptimizerBeforeAdapters(Rule):
    """The optimizer that steps was made before `get_peft_model`.

    ## What happens
    Nothing is raised: gradients arrive, the loss is logged, and the adapters stay as they are.

    ## Why
    An optimizer holds the tensors that it was given. The adapters did not exist then.

    ## Versions
    All: this is torch.

    ## Fix
    The optimizer is made after the adapters are on. The line is moved where both stand in one
    block and nothing between them needs the optimizer.

    ## Links
    https://docs.pytorch.org/docs/stable/optim.html
    """

    code = "LD523"
    name = "optimizer-before-adapters"
    summary = "The optimizer is made before the adapters and does not hold them."
    depth = "static"
    symptoms = (Symptom(r"No inf checks were recorded (?:for|prior to)", weight=-1),)
    examples = (
        Example(
            "broken",
            "tests/scripts/optimizer_too_early.py",
            depth="static",
            why="made of the base model",
        ),
        Example("healthy", "tests/scripts/optimizer_last.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        yield from slips(
            self,
            case,
            optimizer_too_early(case.program),
            "{code} does not hold the adapters, which are put on in {other}: they are never "
            "updated.",
            "adapters are put on",
            "Make the optimizer after the adapters are on.",
        )
