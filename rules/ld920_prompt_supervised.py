"""LD920: the loss is computed on the prompts as well."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Rule,
    Symptom,
)
from lora_doctor.rules._supervision import about, looked_at, loss_on, portion, proof


class PromptSupervised(Rule):
    """The loss is computed on the prompts as well, not only on the answers.

    ## What happens
    The model also learns to write the prompts of the dataset, and most of the loss may come from
    them: it falls because prompts are similar. For some data that is intended.

    ## Why
    Training on every token is the default for conversations. A mask that was requested can get
    lost: a collator that creates its own labels (`DataCollatorForLanguageModeling`) overwrites it.

    ## Versions
    All.

    ## Fix
    `assistant_only_loss` with a template that has generation marks, or rows of prompt and
    completion. It changes what the model learns.

    ## Links
    https://huggingface.co/docs/trl/sft_trainer
    """

    code = "LD920"
    name = "prompt-supervised"
    summary = "The loss is computed on the prompts as well."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\bloss\b.{0,30}\b(?:on|includes|over) the prompt|\bprompts? (?:is"
            r"|are) (?:also )?trained on"
        ),
    )
    told_as = (
        "The loss is computed on the prompt as well.",
        "The prompt is not masked: the labels of the instruction are not -100.",
        "The loss is computed on all tokens, not on the answer only.",
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "assistant_only_loss": True,
                "chat_template_path": "tests/data/templates/chatml_marked.jinja",
                "data_collator": "DataCollatorForLanguageModeling",
            },
            requires={"transformers": ">=4.42"},
            data="tests/data/rows/chats.jsonl",
            depth="meta",
            why="the collator makes labels of all tokens, whatever was masked before",
        ),
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/chats.jsonl",
            why="nothing was asked for: worth knowing",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "assistant_only_loss": True,
                "chat_template_path": "tests/data/templates/chatml_marked.jinja",
            },
            requires={"transformers": ">=4.42"},
            data="tests/data/rows/chats.jsonl",
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.supervision
        rows = found.prompt_supervised
        if not rows or found.asked_without_effect:
            return
        keys = ("assistant_only_loss", "completion_only_loss", "response_template")
        asked = next((key for key in keys if case.recipe.get(key)), None)
        other = next(
            (one for one in found.others if not one.why_not and one.loss_on == "assistant"), None
        )
        fixes = (
            Fix(
                "Compute the loss on the assistant's turns only.",
                "unsafe",
                (Edit("assistant_only_loss", True),),
            )
            if other is not None and not asked and other.supervised_tokens
            else Fix(
                "Compute the loss on the answers only: use rows of prompt and completion, or a "
                "template with generation marks and assistant_only_loss.",
                "manual",
            ),
        )
        told = f"{asked} is set, but the labels do not follow it: in" if asked else "In"
        yield about(
            self.finding(
                "warning" if asked else "info",
                f"{told} {portion(rows, found)} the prompt is trained on as well; "
                f"{found.share:.0%} of "
                "all tokens are supervised.",
                location=Location("recipe", asked or "assistant_only_loss"),
                evidence=(
                    looked_at(found),
                    loss_on(found),
                    Measurement(
                        "supervised tokens", found.supervised_tokens, f"of {found.tokens:,}"
                    ),
                    Measurement(
                        "with assistant_only_loss",
                        other.supervised_tokens
                        if other is not None
                        else "not possible with these rows",
                        "the same rows",
                    ),
                ),
                proof=proof(found),
                fixes=fixes,
            ),
            rows,
        )
