"""LD903: the loss setting has no effect on these rows."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    REMOVE,
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
from lora_doctor.rules._supervision import about, looked_at, proof


class LossSettingWithoutEffect(Rule):
    """`assistant_only_loss` or `completion_only_loss` is set, but the rows do not have the columns
    that it needs.

    ## What happens
    `completion_only_loss` on conversations silently masks nothing: the run trains on the prompts as
    well. `assistant_only_loss` on rows that are not conversations is refused by TRL.

    ## Why
    `completion_only_loss` uses the boundary between the columns `prompt` and `completion`,
    `assistant_only_loss` the roles of messages.

    ## Versions
    TRL with these settings (0.19 and later).

    ## Fix
    The setting that fits the format of the rows: `assistant_only_loss` for messages,
    `completion_only_loss` for prompt and completion. It changes what the model learns.

    ## Links
    https://huggingface.co/docs/trl/sft_trainer
    """

    code = "LD903"
    name = "loss-setting-without-effect"
    summary = "The loss setting has no effect on these rows."
    depth = "meta"
    symptoms = (
        Symptom(r"You set `assistant_only_loss=True`, but the dataset is not conversational"),
        Symptom(r"`assistant_only_loss` argument is only supported for conversational"),
        Symptom(r"`completion_only_loss` argument is not supported for language modeling"),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"], "completion_only_loss": True},
            data="tests/data/rows/chats.jsonl",
            why="conversations have no column that is called completion",
        ),
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"], "assistant_only_loss": True},
            data="tests/data/rows/pairs.jsonl",
            why="texts have no assistant",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"], "completion_only_loss": True},
            data="tests/data/rows/pairs.jsonl",
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.supervision
        if not found.asked_without_effect:
            return
        assistant = bool(case.recipe.get("assistant_only_loss"))
        key, other = "completion_only_loss", "assistant_only_loss"
        if assistant:
            key, other = other, key
        consequence = (
            "TRL refuses them" if assistant else "every token is trained on, including the prompts"
        )
        possible = any(
            one.loss_on == other.partition("_")[0] and not one.why_not for one in found.others
        )
        asked = Fix(
            f"Set {other} instead, which fits these rows.",
            "unsafe",
            (Edit(key, REMOVE), Edit(other, True)),
        )
        yield about(
            self.finding(
                "error" if assistant else "warning",
                f"{found.asked_without_effect}, so {consequence}.",
                location=Location("recipe", key),
                evidence=(
                    looked_at(found),
                    Measurement(key, True, "the recipe"),
                    Measurement(
                        "supervised tokens", found.supervised_tokens, f"of {found.tokens:,}"
                    ),
                    Measurement(
                        f"with {other}",
                        next(
                            (
                                one.why_not or one.supervised_tokens
                                for one in found.others
                                if one.loss_on == other.partition("_")[0]
                            ),
                            "not known",
                        ),
                        "the same rows",
                    ),
                ),
                proof=proof(found),
                fixes=(asked,)
                if possible
                else (Fix(f"Remove {key}, or use rows with the columns that it needs.", "manual"),),
            ),
            found.everything,
        )
