"""LD910: the chat template leaves out a part of the answers."""

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
    """The last answer of a row does not stand in what the template makes of the row, or not whole.

    ## What happens
    Reasoning models lose what they were to learn: the template takes `<think>...</think>` out of
    the answers, and the run trains on answers without reasoning.

    ## Why
    Such templates are made for inference, where the reasoning of earlier turns is not repeated.
    Some take it out of the last answer as well.

    ## Versions
    All. Told by rendering the rows and looking for the answers.

    ## Fix
    A template for training (`chat_template_path`) that writes the answer as it is; or the reasoning
    in the field that the template reads (`reasoning_content`).

    ## Links
    https://huggingface.co/docs/transformers/chat_templating
    """

    code = "LD910"
    name = "answer-changed-by-template"
    summary = "The chat template leaves out a part of the answers."
    depth = "meta"
    descriptions = (
        Symptom(
            r"<think>.{0,60}\b(?:stripped|removed|dropped|strips)\b|\bstrip\w* "
            r".{0,30}(?:<think>|reasoning)"
        ),
    )
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
                f"In {portion(rows, found)} the answer is not what the chat template writes: a "
                "part of it is left out or changed, and is not learned.",
                location=Location("recipe", "chat_template_path"),
                evidence=(
                    looked_at(found),
                    Measurement(
                        "rows with a changed answer", rows.count, "the template's own text"
                    ),
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
