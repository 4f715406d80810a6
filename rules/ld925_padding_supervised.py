"""LD925: the loss includes padding."""

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
    labels_with_padding,
)
from lora_doctor.rules._dry_run_script import MODEL
from lora_doctor.rules._supervision import about, looked_at, portion, proof

#: Share of padding among the labels from which the loss is mostly about padding.
_MOST = 0.5
_PADDED = """
import torch

rows = [
    {
        "input_ids": [1, *range(5 + n, 13 + n), 2] + [0] * 22,
        "attention_mask": [1] * 10 + [0] * 22,
        "labels": [1, *range(5 + n, 13 + n), 2] + [PADDING] * 22,
    }
    for n in range(64)
]
Trainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=4, learning_rate=1e-4),
    train_dataset=rows,
    data_collator=default_data_collator,
).train()
"""


class PaddingSupervised(Rule):
    """Padding tokens have labels, so the loss is computed on them as well.

    ## What happens
    The loss is low from the first steps and falls quickly, because padding is easy to predict. The
    answers contribute little to it, and the model learns to generate padding, or end-of-text tokens
    one after another.

    ## Why
    `labels = input_ids.copy()` after `padding="max_length"` copies the padding too. Labels of a
    sequence-to-sequence model that are padded with `pad_token_id` have the same effect. The
    attention mask does not exclude them from the loss, only the label -100 does.

    In a script that is only read, a function of `map`, or the `__getitem__` of a dataset class, is
    found that copies ids padded to `max_length` into the labels, where the Trainer's collator keeps
    them. How much of the rows is padding is not known then.

    ## Versions
    All.

    ## Fix
    Set labels to -100 wherever the attention mask is 0. `DataCollatorForSeq2Seq` pads labels with
    -100, and `DataCollatorForLanguageModeling` masks the padding token. This changes what the model
    learns.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/data_collator
    """

    code = "LD925"
    name = "padding-supervised"
    summary = "The loss includes padding."
    depth = "static"
    descriptions = (
        Symptom(r"\bpadding\b.{0,40}\b(?:in|part of|counts? (?:in|towards)) the loss"),
        Symptom(
            r"\bmodel\b.{0,60}\b(?:only |keeps? )?(?:generat|output)\w+ .{0,20}\bpad(?:ding)?\b"
        ),
        Symptom(
            r"\A(?=.*\bpad\w*)(?=.*\b(?:labels?\b.{0,30}\binput_ids|unmasked)\b)(?=.*\b(?:pred"
            r"ict\w*|targets?|loss)\b).+"
        ),
    )
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + _PADDED.replace("PADDING", "0"),
            why="22 of 32 labels are padding",
        ),
        Example("healthy", "", script=MODEL + _PADDED.replace("PADDING", "-100")),
        Example(
            "broken",
            "tests/scripts/padding_in_labels.py",
            depth="static",
            why="the labels are a copy of padded ids",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        read = list(self._of_script(case))
        if read:
            yield from read
            return
        found = case.supervision
        rows = found.padding_supervised
        if not rows:
            return
        share = found.padding_labels / (found.padding_labels + found.supervised_tokens)
        yield about(
            self.finding(
                "warning" if share >= _MOST else "info",
                f"{share:.0%} of the labels that the loss is computed on are padding, in "
                f"{portion(rows, found)}.",
                location=Location("environment", "training data"),
                evidence=(
                    looked_at(found),
                    Measurement("labels on padding", found.padding_labels, found.origin),
                    Measurement("labels on other tokens", found.supervised_tokens, found.origin),
                ),
                proof=proof(found),
                fixes=(
                    Fix(
                        "Set the labels of padding to -100: DataCollatorForSeq2Seq pads labels "
                        "with it, and `labels.masked_fill(attention_mask == 0, -100)` masks them.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )

    def _of_script(self, case: Case) -> Iterator[Finding]:
        """A function of a script that was only read."""
        if case.has("dry_run") or not case.has("program"):
            return
        for place, found in labels_with_padding(case.program):
            yield self.finding(
                "warning",
                f"The labels are a copy of padded ids ({found.code}): the loss is computed on the "
                "padding of every shorter row.",
                location=Location("file", place.file, (place.line or 1) + found.line - 1),
                evidence=(
                    Measurement("labels", found.code, str(place)),
                    Measurement("ids", found.padded, "the same function"),
                    Measurement("-100 for padding", "nowhere", "the same function"),
                ),
                proof=Proof("read", "the function that makes the rows"),
                fixes=(
                    Fix(
                        "Set the labels of padding to -100, or leave padding to "
                        "DataCollatorForSeq2Seq or DataCollatorForLanguageModeling(mlm=False).",
                        "manual",
                    ),
                ),
            )
