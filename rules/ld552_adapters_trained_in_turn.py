"""LD552: one Trainer trains two adapters in turn, and its optimizer holds only the first."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, trained_in_turn
from lora_doctor.rules._program import slips


class AdaptersTrainedInTurn(Rule):
    """`train()` of one Trainer is called again after `set_adapter` made another adapter active.

    ## What happens
    The second run computes losses and gradients for the second adapter, and no step changes it: it
    stays as it was initialized. No error is raised.

    ## Why
    A Trainer creates its optimizer once, from the parameters that are trainable at its first
    `train()`: those of the first adapter. `set_adapter` makes the second one trainable, but does
    not add it to the optimizer.

    ## Versions
    All versions of transformers and PEFT.

    ## Fix
    By hand: create a Trainer for each adapter, after `set_adapter`.

    ## Links
    https://huggingface.co/docs/peft/main/en/developer_guides/lora
    """

    code = "LD552"
    name = "adapters-trained-in-turn"
    summary = "One Trainer trains two adapters in turn, and its optimizer holds only the first."
    depth = "static"
    descriptions = (
        Symptom(r"\bsecond adapter\b.{0,60}\b(?:not? (?:be )?train|stays?|unchanged|not updated)"),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/trained_in_turn.py",
            depth="static",
            why="the optimizer is that of the first adapter",
        ),
        Example("healthy", "tests/scripts/trained_by_two_trainers.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        yield from slips(
            self,
            case,
            trained_in_turn(case.program),
            "{code} trains again after {other} activated another adapter: the optimizer was "
            "created for the first adapter, and no step changes the second.",
            "another adapter activated",
            "Create a new Trainer after set_adapter.",
        )
