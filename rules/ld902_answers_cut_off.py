"""LD902: the length limit truncates supervised tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Rule,
    Severity,
    Symptom,
)
from lora_doctor.rules._supervision import (
    about,
    is_few,
    looked_at,
    loss_on,
    of_texts,
    portion,
    proof,
    which,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import Supervision


class AnswersCutOff(Rule):
    """Rows are longer than `max_length`, and the truncated part contains supervised tokens.

    ## What happens
    If the prompt alone fills the limit, no token of the row is supervised: the loss is 0 or NaN, or
    the row is silently dropped. Otherwise the answer loses its end, and with it the token that
    teaches the model to stop.

    ## Why
    Truncation keeps the beginning of a row, and the answer is at its end. TRL's default is 1024
    tokens.

    ## Versions
    All. Newer releases of TRL drop rows without any supervised token left.

    ## Fix
    A limit that fits the longest row, which takes memory; or shorter rows. Either changes what the
    model learns, so it is not applied by default.

    ## Links
    https://huggingface.co/docs/trl/sft_trainer
    """

    code = "LD902"
    name = "answers-cut-off"
    summary = "The length limit truncates supervised tokens."
    depth = "meta"
    symptoms = (
        Symptom(r"will be truncated.{0,200}response.{0,200}labels", "LLaMA-Factory"),
        Symptom(r"Fully masked.{0,200}truncation"),
    )
    descriptions = (
        Symptom(r"\btruncat\w+\b.{0,60}\b(?:answers?|completions?|responses?|labels?)\b"),
    )
    told_as = ("Long answers are cut off by max_length.",)
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "assistant_only_loss": True,
                "chat_template_path": "tests/data/templates/chatml_marked.jinja",
                "max_length": 40,
            },
            requires={"transformers": ">=4.42"},
            data="tests/data/rows/long_prompts.jsonl",
            why="two prompts alone are longer than the limit",
        ),
        Example(
            "broken",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "assistant_only_loss": True,
                "chat_template_path": "tests/data/templates/chatml_marked.jinja",
                "max_length": 22,
            },
            requires={"transformers": ">=4.42"},
            data="tests/data/rows/chats.jsonl",
            why="answers lose their end",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "assistant_only_loss": True,
                "chat_template_path": "tests/data/templates/chatml_marked.jinja",
                "max_length": 256,
            },
            requires={"transformers": ">=4.42"},
            data="tests/data/rows/long_prompts.jsonl",
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = of_texts(case)
        rows = found.answers_cut
        if not rows:
            return
        gone, limit = found.cut_to_nothing, found.max_length
        severity: Severity = "info" if is_few(rows, found) else "warning"
        if gone.count == found.judged:
            severity = "error"
        of_all = f"; no supervised token is left in {gone.count:,} of them" if gone else ""
        yield about(
            self.finding(
                severity,
                f"The limit of {limit} tokens truncates supervised tokens in "
                f"{portion(rows, found)}{of_all}.",
                location=Location("recipe", "max_length"),
                evidence=(
                    looked_at(found),
                    loss_on(found),
                    Measurement("max_length", limit, "the recipe"),
                    Measurement("longest row", found.longest, f"tokens of row {found.longest_row}"),
                    Measurement("median row", found.median_length, "tokens"),
                    Measurement(
                        "rows longer than the limit", found.over_limit.count, "before truncation"
                    ),
                    Measurement(
                        "rows without a supervised token left", gone.count, "after truncation"
                    ),
                    which(rows),
                ),
                proof=proof(found),
                fixes=_fixes(found),
            ),
            gone or rows,
        )


def _fixes(found: Supervision) -> tuple[Fix, ...]:
    length = -(-found.longest // 64) * 64
    whole = found.rows_total == found.rows_seen
    known = "the longest row" if whole else "the longest row examined"
    return (
        Fix(
            f"Make room for {known}: max_length {length}. It takes more memory.",
            "unsafe",
            (Edit("max_length", length),),
        ),
        Fix("Or shorten or remove rows that are too long.", "manual"),
    )
