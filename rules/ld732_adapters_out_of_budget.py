"""LD732: the adapters are larger, or reach fewer layers, than the team's budget says."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Proof, Rule
from lora_doctor.rules._budgets import out_of_budget

_ATTENTION = {"target_modules": ["c_attn"], "r": 8}


class AdaptersOutOfBudget(Rule):
    """The share of parameters that train, or of layers with an adapter, is outside its budget.

    ## What happens
    Nothing fails; a number has left the bounds that were set for it: `target_modules` matches less
    than it did since a model or a release renamed its layers, or the rank grew.

    ## Why
    A team asserts `trainable-share`, parameters that train of all parameters of the model with its
    adapters, and `adapted-share`, linear layers with an adapter of all linear layers but heads
    (fused experts count as one layer each), by what the installed PEFT does on the class at full
    size.

    ## Versions
    All.

    ## Fix
    By hand: the recipe, or the budget.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/lora
    """

    code = "LD732"
    name = "adapters-out-of-budget"
    summary = "The adapters are not as large, or do not reach as far, as the budget says."
    depth = "meta"
    budgets = ("trainable-share", "adapted-share")
    examples = (
        Example("broken", "arch:gpt2", _ATTENTION, depth="meta",
                budgets={"adapted-share": {"min": 0.9, "level": "warn"}},
                why="c_attn is one of four linear layers of a block"),
        Example("healthy", "arch:gpt2", _ATTENTION, depth="meta",
                budgets={"trainable-share": {"max": 0.01}, "adapted-share": {"min": 0.25}}),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        proof = Proof("measured", "the installed PEFT on the class at full size, without weights")
        yield from out_of_budget(self, case, self.budgets, proof)
