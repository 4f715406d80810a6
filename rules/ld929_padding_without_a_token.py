"""LD929: rows are padded with a tokenizer that has no padding token."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom
from lora_doctor.rules._dry_run_script import MODEL
from lora_doctor.rules._refused_batch import finding, refused

_REFUSED = (
    r"Asking to pad but the tokenizer does not have a padding token",
    r"attempting to pad samples but the tokenizer you are using .{1,80}? does not have "
    r"(?:one|a pad token)",
)
_PADDED = """
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

words = {word: number for number, word in enumerate("<s> </s> <pad> a b c d e".split())}
parts = Tokenizer(models.WordLevel(words, unk_token="a"))
parts.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=parts, bos_token="<s>", eos_token="</s>", OPTION
)
rows = [tokenizer(text) for text in ("a b c", "d e", "a e c b d", "b")] * 4
Trainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=2),
    train_dataset=[{"input_ids": row["input_ids"]} for row in rows],
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
).train()
"""


class PaddingWithoutAToken(Rule):
    """Rows of different lengths are to be padded, and the tokenizer has no padding token.

    ## What happens
    `ValueError: Asking to pad but the tokenizer does not have a padding token`, when the rows are
    tokenized with `padding`, or in the collator at the first batch.

    ## Why
    Most decoders (GPT-2, Llama 2 and 3, Mistral) were trained without padding, and their tokenizers
    define no token for it. Collators of transformers call `tokenizer.pad`. TRL and the frameworks
    choose a token themselves, so the same model trains there.

    Found by execution, in a dry run.

    ## Versions
    All versions of transformers.

    ## Fix
    By hand: set `tokenizer.pad_token` to a token of the vocabulary that no answer ends with, such
    as `tokenizer.unk_token` or a reserved one. A token that is added needs a row in the embeddings
    (`resize_token_embeddings`). With `pad_token = eos_token`, collators that mask padding in the
    labels also mask the end of each answer (LD906).

    ## Links
    https://huggingface.co/docs/transformers/pad_truncation
    """

    code = "LD929"
    name = "padding-without-a-token"
    summary = "Rows are padded with a tokenizer that has no padding token."
    depth = "static"
    symptoms = (
        *(Symptom(pattern) for pattern in _REFUSED),
        Symptom(r"Using pad_token, but it is not set yet", aside=True),
    )
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + _PADDED.replace(", OPTION", ""),
            why="the collator pads, and the tokenizer has no token for it",
        ),
        Example("healthy", "", script=MODEL + _PADDED.replace("OPTION", 'pad_token="<pad>"')),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        error = refused(case, _REFUSED)
        if error is None:
            return
        yield finding(
            self,
            error,
            "Rows are to be padded, and the tokenizer has no padding token.",
            "tokenizer",
            "Set tokenizer.pad_token to a token of the vocabulary that no answer ends with "
            "(tokenizer.unk_token or a reserved token; not eos_token, which would be masked in the "
            "labels as well).",
        )
