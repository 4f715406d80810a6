"""LD911: the template adds an opening tag that the answers already have."""

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


class OpeningTagDoubled(Rule):
    """Answers begin with a tag such as `<think>`, and the template adds it again.

    ## What happens
    The model learns to open its reasoning twice. At inference the template adds the tag, the model
    writes it again, and parsers of the answer fail.

    ## Why
    Templates of reasoning models end their generation prompt with the opening tag; answers that
    were sampled from an API contain it.

    ## Versions
    All.

    ## Fix
    The tag in one place: answers without it, or a template without it. It changes what the model
    learns.

    ## Links
    https://huggingface.co/docs/transformers/chat_templating
    """

    code = "LD911"
    name = "opening-tag-doubled"
    summary = "The template adds an opening tag that the answers already have."
    depth = "meta"
    descriptions = (
        Symptom(
            r"<think>.{0,60}\b(?:twice|doubled|duplicated)\b|\b(?:two|double"
            r"|duplicated?) (?:opening )?<think>"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "chat_template_path": "tests/data/templates/thinking_opened.jinja",
            },
            data="tests/data/rows/thought.jsonl",
            depth="meta",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "chat_template_path": "tests/data/templates/thinking_opened.jinja",
            },
            data="tests/data/rows/chats.jsonl",
            depth="meta",
            why="answers that do not open it themselves",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = of_texts(case)
        rows = found.opening_doubled
        if not rows:
            return
        yield about(
            self.finding(
                "warning",
                f"In {portion(rows, found)} {found.doubled_tag} occurs twice before the "
                "answer: the template writes it, and the answer begins with it.",
                location=Location("recipe", "chat_template_path"),
                evidence=(
                    looked_at(found),
                    Measurement("tag", found.doubled_tag, "the beginning of the answers"),
                    Measurement(
                        "generation prompt", found.tokenizer.generation_prompt, "the chat template"
                    ),
                    which(rows),
                ),
                proof=proof(found),
                fixes=(
                    Fix(
                        f"Remove {found.doubled_tag} from the answers, or from the template.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )
