"""LD924: a library removes rows from the training data."""

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
    Severity,
    Symptom,
)
from lora_doctor.rules._dry_run_script import MODEL
from lora_doctor.rules._supervision import FEW

#: What torch's sampler says of a set without rows.
_NO_ROWS = "num_samples=0"
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
    """A framework filters the training set before training: rows that are too long, that have no
    supervised token, or that it cannot encode.

    ## What happens
    Fewer steps than planned, on other data: typically the longest rows are dropped, or those of one
    source. Often nothing is logged, or one line among many. Where no row is left, training ends in
    torch's `num_samples=0`.

    ## Why
    Frameworks drop rows that exceed `max_length`, or that have no supervised token after
    truncation. Filters in the script itself are not reported.

    ## Versions
    All frameworks that use `Dataset.filter`.

    ## Fix
    A larger `max_length`, shorter rows, or rows in the format that the framework expects. It
    changes what the model learns.

    ## Links
    https://huggingface.co/docs/trl/sft_trainer
    """

    code = "LD924"
    name = "rows-dropped"
    summary = "A library removes rows from the training data."
    depth = "static"
    symptoms = (
        Symptom(r"Dropped (?:lengthy|invalid) example", "LLaMA-Factory", aside=True),
        Symptom(
            r"num_samples should be a positive integer value, but got num_samples=0",
            "TRL drops rows without a supervised token",
            context=r"Dropping fully (?:masked|truncated) examples",
        ),
    )
    descriptions = (
        Symptom(
            r"\b(?:rows?|samples?|examples?)\b.{0,40}\b(?:dropped|filtered out|disappear\w*)\b"
            r".{0,60}\b(?:too long|max_?(?:seq_?)?len\w*|cutoff_len|silently)"
        ),
    )
    told_as = (
        "Only a few rows are left of my dataset, rows that are too long are dropped.",
        "The dataset is empty after filtering.",
        "Half of the samples are dropped.",
    )
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + _LIBRARY.replace("LIMIT", "14"),
            requires={"datasets": ">=2.0"},
        ),
        Example("broken", "", script=MODEL + _LIBRARY.replace("LIMIT", "3"),
                requires={"datasets": ">=2.0"}, why="no row is left"),
        Example("healthy", "", script=MODEL + _LIBRARY.replace("LIMIT", "99"),
                requires={"datasets": ">=2.0"}),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        raised = _nothing_left(case)
        for by, (before, after) in _filters(case).items():
            lost = before - after
            evidence: tuple[Measurement, ...] = (
                Measurement("rows before", before, "the filter call of the run"),
                Measurement("rows after", after, "the same call"),
                Measurement("filter", by, "a function of a library"),
            )
            severity: Severity = "warning" if lost >= FEW * before else "info"
            if not after and raised:
                severity = "error"
                evidence += (Measurement("exception", raised, "the user's command, dry-run"),)
            yield self.finding(
                severity,
                f"{by} drops {lost:,} of {before:,} rows before training.",
                location=Location("environment", "training data"),
                evidence=evidence,
                proof=Proof("executed", "the filter ran on rows of the run"),
                fixes=(
                    Fix(
                        "Inspect the rows that it drops: raise max_length, shorten them, or "
                        "use the format that the framework expects.",
                        "manual",
                    ),
                ),
            )


def _filters(case: Case) -> dict[str, tuple[int, int]]:
    """Filter to the rows before and after it, of the set of which it leaves the smallest part."""
    found: dict[str, tuple[int, int]] = {}
    for one in case.dry_run.filtered:
        before, after = found.get(one.by, (1, 1))
        if one.by not in found or one.after * before < after * one.before:
            found[one.by] = (one.before, one.after)
    return found


def _nothing_left(case: Case) -> str:
    """What torch raises about a set without rows, where that ended the command."""
    error = case.dry_run.error
    if error is None or error.steps or _NO_ROWS not in error.message:
        return ""
    return f"{error.type}: {error.message}"
