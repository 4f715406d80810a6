"""LD919: rows cannot be turned into samples."""

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
from lora_doctor.rules._supervision import (
    about,
    looked_at,
    of_data,
    of_texts,
    portion,
    proof,
    which,
)


class RowsRefused(Rule):
    """The chat template raises on some rows, or rows lack the columns to train on.

    ## What happens
    The run ends while the dataset is tokenized, at the first such row; some frameworks silently
    drop the rows.

    ## Why
    Templates reject what their model was not trained with: a system message (Gemma), two turns of
    the same role (Mistral, Llama 2), a conversation that begins with an answer.

    ## Versions
    All.

    ## Fix
    Rows in the format that the template accepts, or a template that accepts them
    (`chat_template_path`).

    ## Links
    https://huggingface.co/docs/transformers/chat_templating
    """

    code = "LD919"
    name = "rows-refused"
    summary = "Rows cannot be turned into samples."
    depth = "meta"
    symptoms = (
        Symptom(r"System role not supported"),
        Symptom(r"tokenizer\.chat_template is not set", "transformers>=4.44"),
        Symptom(r"Conversation roles must alternate"),
        Symptom(r"After the optional system message, conversation roles must alternate"),
        Symptom(r"jinja2\.exceptions\.(?:Template|Undefined)Error", weight=-1),
        Symptom(
            r"[Nn]umber of <?(?:image|video|audio)\w*>? (?:tokens )?(?:provided )?(?:in \w+ )?"
            r"(?:\(\d+\) )?(?:does not|doesn't) match (?:the )?number of",
            "LLaMA-Factory, TRL and processors",
        ),
        Symptom(
            r"number of (?:\S+ )?tokens? in each \w+ .{0,60}?should be the same as the number of"
            r"|number of image token \(\d+\) should be the same as in the number of provided"
            r"|(?:[Ii]mages?|[Aa]udio) were provided, but there are (?:no )?(?:image|audio) tok"
            r"|Prompt contained \d+ image tokens but received"
            r"|should add as much (?:image|audio) tokens"
            r"|tokens? in (?:provided|the) text but (?:received|no (?:images|videos|audio))",
            "processors of transformers",
        ),
        Symptom(r"Invalid (?:keys in the example|role in (?:the last )?message)\b", "TRL"),
        Symptom(r"input examples must contain either 'messages' for conversational data", "TRL"),
        Symptom(r"total number of \S+ tokens in the prompts should be the same as the number of"),
        Symptom(
            r"\bTextEncodeInput must be Union|\bTextInputSequence must be"
            r"|\btext input must be of type `str` \(single example\)",
            "a column that holds no text: None, numbers, lists of messages",
        ),
        Symptom(r"Cannot use apply_chat_template because this processor does not have a chat"),
        Symptom(
            r"KeyError: '(?:text|messages|conversations?|instruction|input|output|question|answer"
            r"|prompt|completion|chosen|rejected)'",
            raised_in=r"[\\/](?:trl|datasets)[\\/]",
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "chat_template_path": "tests/data/templates/gemma.jinja",
            },
            data="tests/data/rows/system.jsonl",
            depth="meta",
            why="Gemma's template takes no system message",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/system.jsonl",
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = of_texts(case)
        rows = found.refused
        if not rows:
            return
        yield about(
            self.finding(
                "error",
                f"{portion(rows, found)} cannot be turned into samples: {found.refusal}.",
                location=of_data(case),
                evidence=(
                    looked_at(found),
                    Measurement(
                        "error for the first", found.refusal, "the template, or the rows' columns"
                    ),
                    which(rows),
                ),
                proof=proof(found),
                fixes=(
                    Fix(
                        (
                            "Rewrite these rows in the format that the template accepts, or remove "
                            "them."
                        ),
                        "manual",
                    ),
                ),
            ),
            rows,
        )
