"""LD930: the script's collator, or a transform, reads a column that the Trainer removes."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    collated_columns,
    quoted,
)
from lora_doctor.static.installed.forward_arguments import forward_arguments

#: Kept by every Trainer, whatever the model takes.
_KEPT = ("label", "label_ids")


class CollatorReadsRemovedColumn(Rule):
    """The script's `data_collator`, or the transform of its set (`set_transform`), reads a column
    (`row["messages"]`, `batch["image"]`) that the model's `forward` does not name, and
    `remove_unused_columns` is on.

    ## What happens
    `KeyError` in that function at the first batch, or `No columns in the dataset match the model's
    forward method signature`. The dataset has the column; the function never sees it.

    ## Why
    Before it collates, the Trainer removes every column that is not an argument of the model's
    `forward` and not a label. A collator or transform that makes the model's inputs from texts or
    images needs the original columns.

    ## Versions
    All of transformers. A dry run finds the same for any model and dataset (LD923).

    ## Fix
    `remove_unused_columns=False` in `TrainingArguments`.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/trainer
    """

    code = "LD930"
    name = "collator-reads-removed-column"
    summary = "The script's collator or transform reads a column that the Trainer removes."
    depth = "static"
    symptoms = (
        Symptom(
            r"\bKeyError: .(?:messages|text|images?|audio|conversations?|question|answer)\b.$",
            context=r"in collate\w*|data_collator\(|_collate|in format_batch",
            weight=-1,
        ),
        # The collator is the program's own, and torch's loader has just called it.
        Symptom(
            r"\bKeyError: (?='\w+'(?:$| ))",
            context=r"in fetch return self\.collate_fn\(data\)",
            raised_in=r"^(?!.*(?:(?:site|dist)-packages|transformers_modules)[\\/])",
            weight=-1,
        ),
    )
    told_as = ("A custom collator is not passed the keys of the dataset that it expects.",)
    examples = (
        Example(
            "broken",
            "tests/scripts/column_removed.py",
            requires={"transformers": ">=4.41"},
            depth="static",
            why="forward of Phi-3 has no argument messages",
        ),
        Example(
            "healthy",
            "tests/scripts/columns_kept.py",
            requires={"transformers": ">=4.41"},
            depth="static",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = list(collated_columns(case.program))
        if not found:
            return
        model_type = str(case.static.config.get("model_type") or "")
        taken = forward_arguments(model_type)
        if not taken:
            raise EvidenceError(f"the arguments of {model_type or 'this model'} are not known")
        for one in found:
            lost = [name for name in one.names if name not in {*taken, *_KEPT, *one.labels}]
            if not lost or _has_failed(case, lost):
                continue
            yield self.finding(
                "error",
                f"{one.collator} reads the column{'s' if len(lost) > 1 else ''} {quoted(lost, 4)}, "
                f"which {one.trainer} has removed, because the forward of {model_type} does "
                f"not take {'it' if len(lost) == 1 else 'them'}.",
                location=Location("file", one.place.file, one.place.line),
                evidence=(
                    Measurement("columns read", list(one.names), one.collator),
                    Measurement("removed of these", lost, "forward arguments, installed source"),
                ),
                proof=Proof("read", f"{one.collator}, and the installed source of the model"),
                fixes=(
                    Fix(
                        "Set remove_unused_columns=False in TrainingArguments.",
                        "safe" if one.rewrites else "manual",
                        rewrites=one.rewrites,
                    ),
                ),
            )


def _has_failed(case: Case, names: list[str]) -> bool:
    """Whether a dry run has failed where these columns were removed: LD923 tells what was seen."""
    if not case.has("dry_run") or case.dry_run.error is None:
        return False
    dropped = case.dry_run.dropped_columns
    return dropped is not None and not set(names).isdisjoint(dropped.names)
