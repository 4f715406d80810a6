"""LD732: the adapters are larger, or cover fewer layers, than the team's budget allows."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Proof, Rule
from lora_doctor.rules._budgets import out_of_budget

_ATTENTION = {"target_modules": ["c_attn"], "r": 8}


class AdaptersOutOfBudget(Rule):
    """The share of parameters that train, or of layers with an adapter, is outside its budget.

    ## What happens
    Nothing fails; a number has left the bounds that the team set for it: `target_modules` matches
    fewer layers since a model or a release renamed them, or the rank was raised.

    ## Why
    A team declares `trainable-share`, the trainable share of all parameters of the model with its
    adapters, and `adapted-share`, the share of linear layers with an adapter, without heads (fused
    experts count as one layer each). Both are counted on the full-size class with the installed
    PEFT.

    ## Versions
    All.

    ## Fix
    By hand: change the recipe or the budget.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/lora
    """

    code = "LD732"
    name = "adapters-out-of-budget"
    summary = "The adapters are larger, or cover fewer layers, than the project's budget allows."
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
        proof = Proof(
            "measured",
            ("counted on the full-size model with the installed PEFT, on the meta device"),
        )
        yield from out_of_budget(self, case, self.budgets, proof)
