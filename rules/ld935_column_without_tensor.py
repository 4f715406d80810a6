"""LD935: a column of the rows of which the collator cannot make a tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom
from lora_doctor.rules._dry_run_script import MODEL
from lora_doctor.rules._refused_batch import finding, refused

_REFUSED = (
    r"Unable to create tensor, you should probably activate truncation and/or padding",
    r"expected sequence of length \d+ at dim \d+ \(got \d+\)",
    r"too many dimensions 'str'",
)
_COLUMN = re.compile(r"features \(`(\w+)` in this case\)")
_BATCHED = """
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import COLLATOR, PreTrainedTokenizerFast

words = {word: number for number, word in enumerate("<s> </s> <pad> a b c d e".split())}
parts = Tokenizer(models.WordLevel(words, unk_token="a"))
parts.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=parts, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
)
rows = [tokenizer(text)["input_ids"] for text in ("a b c", "d e", "a e c b d", "b")] * 4
Trainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=2),
    train_dataset=[{"input_ids": row, "labels": row} for row in rows],
    data_collator=COLLATOR(tokenizer),
).train()
"""


class ColumnWithoutTensor(Rule):
    """The collator cannot make a tensor of a column: its rows have different lengths, or are not
    numbers.

    ## What happens
    `ValueError: Unable to create tensor, you should probably activate truncation and/or padding`
    at the first batch whose rows differ, with the name of the column; with
    `default_data_collator` `expected sequence of length 8 at dim 1 (got 5)`, or `too many
    dimensions 'str'`.

    ## Why
    `tokenizer.pad`, which `DataCollatorWithPadding` and `DataCollatorForLanguageModeling` call,
    pads what the tokenizer makes, and not `labels`. `default_data_collator` pads nothing. A column
    of texts that is kept (`remove_unused_columns=False`), or lists in lists, which a `map` without
    `batched=True` gives, cannot become a tensor at all.

    Found by execution, in a dry run.

    ## Versions
    All versions of transformers.

    ## Fix
    By hand: a collator that pads this column (`DataCollatorForSeq2Seq` and
    `DataCollatorForTokenClassification` pad `labels`), or no such column: for language modeling
    `DataCollatorForLanguageModeling` makes the labels itself, on all tokens.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/data_collator
    """

    code = "LD935"
    name = "column-without-tensor"
    summary = "The collator cannot make a tensor of a column of the rows."
    depth = "static"
    symptoms = (
        *(Symptom(pattern) for pattern in _REFUSED),
        Symptom(
            r"stack expects each tensor to be equal size, but got \[\d+\] at entry",
            "torch's own collator, where rows are tensors",
        ),
    )
    told_as = ("Rows of different lengths cannot be stacked into a tensor.",)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + _BATCHED.replace("COLLATOR", "DataCollatorWithPadding"),
            why="this collator does not pad labels",
        ),
        Example(
            "healthy", "", script=MODEL + _BATCHED.replace("COLLATOR", "DataCollatorForSeq2Seq")
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        error = refused(case, _REFUSED)
        if error is None:
            return
        column = _COLUMN.search(error.message)
        what = f"the column {column[1]!r}" if column else "a column of the rows"
        yield finding(
            self,
            error,
            f"The collator cannot make a tensor of {what}: its rows have different lengths, or are "
            "not numbers.",
            "data_collator",
            "Use a collator that pads this column (DataCollatorForSeq2Seq pads labels), or leave "
            "it out of the rows.",
        )
