"""LD619: the chat template is a separate file, which the installed transformers does not read."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.static.folder.tokenizer_settings import chat_template_not_read


class ChatTemplateNotRead(Rule):
    """The folder has its chat template in `chat_template.jinja`, and the installed transformers
    looks for it in `tokenizer_config.json`.

    ## What happens
    The tokenizer loads without a template. `apply_chat_template` then raises, or in older releases
    falls back to a default template of its class, which the model was not trained with. Trainers
    that format conversations do the same.

    ## Why
    Newer releases save the template as a separate file. Older ones read only
    `tokenizer_config.json`.

    ## Versions
    Read from the source of the installed transformers: whether it knows the file.

    ## Fix
    Write the content of the file as `chat_template` into `tokenizer_config.json` of a copy of the
    folder, which every release reads, or set `tokenizer.chat_template` after loading.

    ## Links
    https://huggingface.co/docs/transformers/chat_templating
    """

    code = "LD619"
    name = "chat-template-not-read"
    summary = "The chat template is a file that the installed transformers does not read."
    depth = "static"
    symptoms = (Symptom(r"tokenizer\.chat_template is not set", "transformers>=4.44", weight=-1),)
    examples = (
        Example(
            "broken",
            "tests/folders/tokenizer_of_transformers_5",
            requires={"transformers": "<4.43"},
            depth="static",
            why="a template in a file of its own, and a release that knows no such file",
        ),
        Example("healthy", "tests/folders/vocabulary_padded", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        static = case.static
        static.tokenizer_config.require()
        if not chat_template_not_read(static):
            return
        version = case.environment.version("transformers") or "the installed release"
        yield self.finding(
            "warning",
            f"transformers {version} does not read chat_template.jinja: conversations will be "
            "formatted without the model's template.",
            location=Location("file", "chat_template.jinja"),
            evidence=(
                Measurement("chat_template.jinja", "in the folder", static.source),
                Measurement("chat_template", "not given", "tokenizer_config.json"),
                Measurement(
                    f"transformers {version}",
                    "does not name the file",
                    "tokenization_utils_base.py",
                ),
            ),
            proof=Proof(
                "measured",
                ("the folder was compared with the source of the installed transformers"),
            ),
            fixes=(
                Fix(
                    "Write the content of chat_template.jinja as chat_template into "
                    "tokenizer_config.json of a copy of the folder, or set "
                    "tokenizer.chat_template after loading.",
                    "manual",
                ),
            ),
        )
