"""LD907: rows begin with two beginning-of-text tokens."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Measurement,
    Rule,
    Symptom,
)
from lora_doctor.rules._supervision import about, looked_at, of_data, portion, proof, which


class TwoBeginningsOfText(Rule):
    """The first two tokens of a row are both the token that begins a text.

    ## What happens
    The model is trained with a beginning that it never sees at inference, where there is only one
    such token. The loss looks normal; answers get slightly worse.

    ## Why
    The template writes the token as text, and the tokenizer adds it again to every text:
    `apply_chat_template(..., tokenize=False)` and then `tokenizer(text)`.

    ## Versions
    All.

    ## Fix
    `tokenizer(text, add_special_tokens=False)` for templated texts, or texts without the token. It
    changes what the model learns.

    ## Links
    https://huggingface.co/docs/transformers/chat_templating
    """

    code = "LD907"
    name = "two-beginnings-of-text"
    summary = "Rows begin with two beginning-of-text tokens."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\b(?:two|double|doubled|duplicated?) (?:bos\b|<s>|<\|begin_of_text\|>"
            r"|beginning)|\b(?:bos|begin_of_text)\b.{0,30}\b(?:twice|doubled"
            r"|duplicated)\b"
        ),
    )
    told_as = ("Each row has two BOS tokens.",)
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model_with_bos",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/texts_with_bos.jsonl",
            depth="meta",
            why="texts that were made by a template and are tokenized as any text",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model_with_bos",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/texts.jsonl",
            depth="meta",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model_with_bos",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/chats.jsonl",
            depth="meta",
            why="the template writes the token, and the tokenizer adds none to what it made",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.supervision
        rows = found.two_bos
        if not rows:
            return
        bos = found.tokenizer.name(found.tokenizer.bos_id)
        yield about(
            self.finding(
                "warning",
                f"{portion(rows, found)} begin with {bos}{bos}: the texts contain it, and the "
                "tokenizer adds another one.",
                location=of_data(case),
                evidence=(
                    looked_at(found),
                    Measurement("beginning-of-text token", bos, "the tokenizer"),
                    Measurement("rows that begin with two", rows.count, "token by token"),
                    which(rows),
                ),
                proof=proof(found),
                fixes=(
                    Fix(
                        f"Remove {bos} from the texts, or tokenize them with "
                        "add_special_tokens=False.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )
