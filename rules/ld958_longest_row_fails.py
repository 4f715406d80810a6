"""LD958: the longest row of the training set raises an exception."""

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
from lora_doctor.rules._dry_run_script import CLASSES
from lora_doctor.rules._training_signal import signal


class LongestRowFails(Rule):
    """Rows of the usual length train; the longest row of the training set raises an exception.

    ## What happens
    The run ends when the turn of such a row comes, which may be after hours: `index out of range in
    self` on a CPU, `device-side assert triggered` on a GPU, or a mismatch of shapes.

    ## Why
    The row is longer than the position embeddings of the model (512 tokens for BERT, 1024 for
    GPT-2) and is not truncated; or truncation cuts off places for an image.

    A dry run passes the longest row of the training set through the run's own collator and loss,
    and one of the usual length to compare with. Of a set that is cut for the dry run it is the row
    with the most text; it is not known once a part of the set is chosen, or its rows are joined.

    ## Versions
    All.

    ## Fix
    Truncate when the rows are tokenized: `tokenizer(text, truncation=True, max_length=...)`. It
    changes what these rows teach.

    ## Links
    https://huggingface.co/docs/transformers/pad_truncation
    """

    code = "LD958"
    name = "longest-row-fails"
    summary = "The longest row of the training set raises an exception."
    depth = "static"
    symptoms = (
        Symptom(r"Labels' sequence length \d+ cannot exceed the maximum allowed length", "Whisper"),
    )
    told_as = ("Training always crashes at the same step, with the longest sample.",)
    examples = (
        Example(
            "broken",
            "",
            script=CLASSES.replace(
                "Trainer(\n",
                "rows.append({'input_ids': [1, *range(5, 80), 2], 'labels': 1})\nTrainer(\n",
            ),
            why="one row of 77 tokens, and 64 positions",
        ),
        Example("healthy", "", script=CLASSES),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = signal(case).longest
        if found is None:
            return
        source = "the longest row, through the run's own collator and loss"
        yield self.finding(
            "error",
            f"Row {found.row} of {found.rows:,}, the longest with {found.tokens:,} tokens, fails: "
            f"{found.error}",
            location=Location("environment", "training data"),
            evidence=(
                Measurement("exception", found.error, source),
                Measurement("tokens of the longest row", found.tokens, source),
                Measurement("its number", found.row, "from 1, in the order of the set"),
            ),
            proof=Proof("executed", source),
            fixes=(
                Fix(
                    "Truncate rows when they are tokenized: truncation=True, max_length=...",
                    "manual",
                ),
            ),
        )
