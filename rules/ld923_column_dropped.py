"""LD923: the Trainer removes a column that is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from lora_doctor.rule_api import ScriptError

_COLLATED = """
import torch

rows = [{"input_ids": [1, *range(5 + n, 15 + n), 2], "shift": 1} for n in range(160)]


def collated(chosen):
    ids = torch.tensor([row["input_ids"] for row in chosen])
    return {"input_ids": ids + chosen[0]["shift"], "labels": ids}


Trainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=2, OPTION),
    train_dataset=rows,
    data_collator=collated,
).train()
"""
_NONE_LEFT = "No columns in the dataset match"


class ColumnDropped(Rule):
    """`remove_unused_columns` removes every column that the model's forward does not name,
    including columns that the collator or an inner model needs.

    ## What happens
    A collator raises KeyError for a column that the dataset has; if no column is left, the Trainer
    itself raises. A wrapper whose forward takes `**kwargs` silently trains without columns that its
    inner model could use, such as images or masks.

    ## Why
    The Trainer reads the names in the signature of `forward` (of PEFT's base model) and nothing
    else.

    ## Versions
    All.

    ## Fix
    `remove_unused_columns=False` in `TrainingArguments`. The collator then gets every column.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/trainer
    """

    code = "LD923"
    name = "column-dropped"
    summary = "The Trainer removes a column that is needed."
    depth = "static"
    symptoms = (
        Symptom(r"No columns in the dataset match the model's forward method signature"),
        Symptom(r"The batch received was empty, your model won't be able to train"),
        Symptom(
            r"encodings to this method that includes input_ids, but you provided "
            r"\[(?:'labels?'(?:, )?)*\]"
        ),
        Symptom(
            r"\bKeyError: '(?:input_ids|labels?|messages|text|images?|pixel_values|audio)'",
            context=r"(?i)\bcollat",
            alone=True,
            weight=-1,
        ),
        Symptom(r"Invalid key: .{1,40}? is out of bounds for size 0\b", "transformers<5"),
    )
    descriptions = (
        Symptom(r"\bcolumns?\b.{0,40}\b(?:is|are|was|were|gets?) (?:removed|dropped|ignored)\b"),
        Symptom(
            r"\b(?:images?|pixel_values)\b.{0,40}\b(?:removed|dropped|ignored)\b.{0,60}\b(?:co"
            r"llator|batch|trainer)\b"
        ),
        Symptom(
            r"\A(?=.*\b(?:remov|drop)(?:es?|s|ed)\b)(?=.*\bcolumns?\b)(?=.*\b\w*(?:trainer|col"
            r"lator)\b)(?=.*\b(?:need\w*|missing|KeyError|lost|gone)\b).+"
        ),
    )
    told_as = (
        "My own column is removed before it reaches the collator or the loss.",
        "remove_unused_columns deletes columns of the dataset that a loss function needs.",
    )
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + _COLLATED.replace("OPTION", "remove_unused_columns=True"),
            why="the collator reads a column that forward does not name",
        ),
        Example(
            "healthy",
            "",
            script=MODEL + _COLLATED.replace("OPTION", "remove_unused_columns=False"),
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        run = case.dry_run
        dropped = run.dropped_columns
        if dropped is None:
            return
        missed = _missed(run.error, dropped.names) if run.error is not None else []
        source = "the Trainer of the run"
        if not missed and not dropped.needed:
            return
        names = missed or list(dropped.needed)
        who = f"{next(iter(dropped.needed.values()))}.forward takes" if not missed else "is needed"
        told = (
            f"The Trainer removed {_listed(names)} from the rows, because forward does not "
            f"name {('it' if len(names) == 1 else 'them')}; "
        )
        told += "the run needs it." if missed else f"{who} {'it' if len(names) == 1 else 'them'}."
        yield self.finding(
            "error" if missed else "warning",
            told,
            location=Location("environment", "remove_unused_columns"),
            evidence=(
                Measurement("dropped columns", list(dropped.names), source),
                Measurement("needed of these", names, "what failed" if missed else "signatures"),
            ),
            proof=Proof("executed", source),
            fixes=(Fix("Set remove_unused_columns=False in TrainingArguments.", "manual"),),
        )


def _missed(error: ScriptError, names: tuple[str, ...]) -> list[str]:
    """Dropped columns that an exception is about."""
    if _NONE_LEFT in error.message:
        return list(names)
    about = error.type.endswith("KeyError") or "required" in error.message
    words = set(re.findall(r"\w+", error.message)) if about else set()
    return [name for name in names if name in words]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (" and more" if len(names) > 6 else "")
