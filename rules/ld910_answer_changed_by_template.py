"""LD910: the chat template drops or changes a part of the answers."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Rule,
    Symptom,
)
from lora_doctor.rules._supervision import about, looked_at, of_texts, portion, proof, which


class AnswerChangedByTemplate(Rule):
    """The last answer of a row is missing or incomplete in the text that the template makes of the
    row.

    ## What happens
    Reasoning models do not learn what they should: the template removes `<think>...</think>` from
    the answers, and the run trains on answers without reasoning.

    ## Why
    Such templates are made for inference, where the reasoning of earlier turns is not repeated.
    Some also remove it from the last answer.

    ## Versions
    All. Found by rendering the rows and searching for the answers.

    ## Fix
    A template for training (`chat_template_path`) that writes the answer as it is; or the reasoning
    in the field that the template reads (`reasoning_content`).

    ## Links
    https://huggingface.co/docs/transformers/chat_templating
    """

    code = "LD910"
    name = "answer-changed-by-template"
    summary = "The chat template drops or changes a part of the answers."
    depth = "meta"
    descriptions = (
        Symptom(
            r"<think>.{0,60}\b(?:stripped|removed|dropped|strips)\b|\bstrip\w* "
            r".{0,30}(?:<think>|reasoning)"
        ),
    )
    told_as = ("The chat template removes the reasoning from the answers.",)
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "chat_template_path": "tests/data/templates/thinking_stripped.jinja",
            },
            data="tests/data/rows/thought.jsonl",
            depth="meta",
            why="everything up to </think> is taken out",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "chat_template_path": "tests/data/templates/chatml.jinja",
            },
            data="tests/data/rows/thought.jsonl",
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = of_texts(case)
        rows = found.answer_changed
        if not rows:
            return
        yield about(
            self.finding(
                "warning",
                f"In {portion(rows, found)} the chat template does not write the answer "
                "unchanged: a part of it is dropped or changed, and not learned.",
                location=Location("recipe", "chat_template_path"),
                evidence=(
                    looked_at(found),
                    Measurement("rows with a changed answer", rows.count, "the template's output"),
                    which(rows),
                ),
                proof=proof(found),
                fixes=(
                    Fix(
                        "Train with a template that writes answers as they are "
                        "(chat_template_path), or "
                        "put the reasoning where this one reads it.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )
