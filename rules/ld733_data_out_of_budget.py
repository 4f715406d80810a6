"""LD733: fewer tokens are supervised, or more rows truncated, than the team's budget allows."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Proof, Rule
from lora_doctor.rules._budgets import out_of_budget

#: Older releases know no generation marks in a template.
_MARKS = {"transformers": ">=4.42"}
_CHATS = {
    "target_modules": ["q_proj"],
    "assistant_only_loss": True,
    "chat_template_path": "tests/data/templates/chatml_marked.jinja",
    "max_length": 40,
}


class DataOutOfBudget(Rule):
    """What the loss sees of the training data is outside its budget.

    ## What happens
    Nothing fails; a number has left the bounds that the team set for it: a new export of the data
    has longer rows, or a template masks more tokens.

    ## Why
    A team declares `supervised-tokens` and `supervised-share`, the number and the share of tokens
    that the loss is computed on, and `rows-cut`, the share of rows longer than `max_length`. They
    are counted on the rows examined (`--rows`), with `--data FILE` or in a dry run. Without data
    the budget is not measured, and the answer is undetermined.

    ## Versions
    All.

    ## Fix
    By hand: change the data, `max_length` or the budget.

    ## Links
    https://huggingface.co/docs/trl/sft_trainer
    """

    code = "LD733"
    name = "data-out-of-budget"
    summary = (
        "Fewer tokens are supervised, or more rows truncated, than the project's budget allows."
    )
    depth = "meta"
    budgets = ("supervised-tokens", "supervised-share", "rows-cut")
    examples = (
        Example("broken", "tests/folders/chat_model", _CHATS, depth="meta",
                data="tests/data/rows/long_prompts.jsonl", requires=_MARKS,
                budgets={"rows-cut": {"max": 0.1}, "supervised-tokens": {"min": 1}}),
        Example("healthy", "tests/folders/chat_model", {**_CHATS, "max_length": 256}, depth="meta",
                data="tests/data/rows/chats.jsonl", requires=_MARKS,
                budgets={"rows-cut": {"max": 0}, "supervised-share": {"min": 0.05}}),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        proof = Proof("measured", "rows of the data were tokenized with the model's tokenizer")
        yield from out_of_budget(self, case, self.budgets, proof)
