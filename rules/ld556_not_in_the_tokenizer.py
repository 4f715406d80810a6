"""LD556: a script asks its tokenizer for a mask token or a chat template that it does not have."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    AskedOfTokenizer,
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    asked_of_tokenizer,
)
from lora_doctor.static.folder.lacking_tokenizer import lacks_chat_template, lacks_mask_token

_PROOF = Proof("read", "the files of the tokenizer, the installed classes, and the script")


class NotInTheTokenizer(Rule):
    """A script uses a mask token or a chat template of the model's tokenizer, and that has none.

    ## What happens
    `ValueError: This tokenizer does not have a mask token which is necessary for masked language
    modeling` when the collator is made, or `Cannot use chat template functions because
    tokenizer.chat_template is not set` when the first row is formatted.

    ## Why
    `DataCollatorForLanguageModeling` masks words unless `mlm=False` is passed; a causal model is
    trained without. The tokenizers of base models often come without a chat template, which those
    of the chat models beside them have.

    lora-doctor reads the tokenizer's files, and whether an installed class has one by default.
    A script that sets either itself is left alone.

    ## Versions
    All. Before 4.44 transformers had default templates, and nothing is said of templates there.

    ## Fix
    By hand: `mlm=False`; or set `tokenizer.chat_template`, to the one of the chat model.

    ## Links
    https://github.com/huggingface/trl/issues/445,
    https://github.com/unslothai/unsloth/issues/2096
    """

    code = "LD556"
    name = "not-in-the-tokenizer"
    summary = "A mask token or a chat template is used, and the model's tokenizer has none."
    depth = "static"
    symptoms = (Symptom(r"This tokenizer does not have a mask token which is necessary"),)
    examples = (
        Example(
            "broken",
            "tests/scripts/words_masked.py",
            depth="static",
            why="the collator masks words by default",
        ),
        Example(
            "broken",
            "tests/scripts/template_of_base_model.py",
            requires={"transformers": ">=4.44"},  # no templates by default
            depth="static",
            why="the tokenizer has no chat template",
        ),
        Example("healthy", "tests/scripts/no_words_masked.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run asked it
        for asked in asked_of_tokenizer(case.program):
            mask = asked.what == "mask_token"
            if not (lacks_mask_token if mask else lacks_chat_template)(case.static):
                continue
            yield self.finding(
                "error",
                _message(asked, mask),
                location=Location("file", asked.place.file, asked.place.line),
                evidence=(
                    Measurement(asked.what, "none", "tokenizer_config.json, installed classes"),
                ),
                proof=_PROOF,
                fixes=(Fix(_MASKS if mask else _FORMATS, "manual"),),
            )


_MASKS = "Pass mlm=False for a causal model."
_FORMATS = "Set tokenizer.chat_template before, to the template of the chat model."


def _message(asked: AskedOfTokenizer, mask: bool) -> str:
    if mask:
        return (
            f"{asked.by} masks words unless mlm=False is passed, and the tokenizer has no mask "
            "token: the call raises ValueError."
        )
    return f"The tokenizer has no chat template: {asked.by} raises ValueError."
