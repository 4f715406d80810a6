"""LD924: a library takes rows out of the training data."""

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
from lora_doctor.rules._dry_run_script import MODEL
from lora_doctor.rules._supervision import FEW

#: A library of its own: a filter that is nobody's of the script.
_LIBRARY = """
import sys
import types

from datasets import Dataset

source = "def is_short(row):\\n    return len(row['input_ids']) < LIMIT\\n"
library = types.ModuleType("framework")
exec(compile(source, "<framework>", "exec"), library.__dict__)
library.is_short.__module__ = "framework"
rows = [{"input_ids": (r := [1, *range(5, 10 + n % 12), 2]), "labels": r} for n in range(160)]
Trainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=1),
    train_dataset=Dataset.from_list(rows).filter(library.is_short),
    data_collator=default_data_collator,
).train()
"""


class RowsDropped(Rule):
    """A framework filters the training set before it trains: rows that are too long, of which the
    loss sees nothing, or that it cannot encode.

    ## What happens
    Fewer steps than were planned for, on other data: what is dropped is the longest rows, or those
    of one source. Often no word is said, or one line among many.

    ## Why
    Frameworks leave out what does not fit `max_length`, or has no supervised token after
    truncation. Filters of the script itself are not reported.

    ## Versions
    All frameworks that filter by `Dataset.filter`.

    ## Fix
    A larger `max_length`, shorter rows, or rows in the form that the framework reads. It changes
    what the model learns.

    ## Links
    https://huggingface.co/docs/trl/sft_trainer
    """

    code = "LD924"
    name = "rows-dropped"
    summary = "A library takes rows out of the training data."
    depth = "static"
    symptoms = (Symptom(r"Dropped (?:lengthy|invalid) example", "LLaMA-Factory", aside=True),)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + _LIBRARY.replace("LIMIT", "14"),
            requires={"datasets": ">=2.0"},
        ),
        Example("healthy", "", script=MODEL + _LIBRARY.replace("LIMIT", "99"),
                requires={"datasets": ">=2.0"}),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        for one in case.dry_run.filtered:
            lost = one.before - one.after
            yield self.finding(
                "warning" if lost >= FEW * one.before else "info",
                f"{one.by} drops {lost:,} of {one.before:,} rows before training.",
                location=Location("environment", "training data"),
                evidence=(
                    Measurement("rows before", one.before, "the run's own call of filter"),
                    Measurement("rows after", one.after, "the same call"),
                    Measurement("filter", one.by, "a function of a library"),
                ),
                proof=Proof("executed", "the filter ran on rows of the run"),
                fixes=(
                    Fix(
                        "Look at the rows that it drops: raise max_length, shorten them, or give "
                        "them the form that the framework reads.",
                        "manual",
                    ),
                ),
            )
