"""LD536: all splits of a data set are used where the rows of one are needed."""

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
    splits_as_rows,
)

_PROOF = Proof("read", "the source of the installed datasets, and the script")


class SplitsTakenForRows(Rule):
    """`load_dataset` without `split` returns a `DatasetDict`, and the script treats it as the rows
    of one split.

    ## What happens
    `AttributeError: 'DatasetDict' object has no attribute 'train_test_split'`, `Column to remove
    ['train'] not in the dataset` from `map`, or `TypeError` or `KeyError` in the trainer, often
    after the model has been loaded.

    ## Why
    A file that has no splits has one all the same, called `train`: `load_dataset("json",
    data_files=...)` returns a dictionary with that key. `column_names` of it is a dictionary, too,
    whose keys are the splits.

    Which methods it has is read in the source of the installed datasets.

    ## Versions
    All.

    ## Fix
    By hand: `split="train"` in `load_dataset`, or `dataset["train"]` where the rows are needed.

    ## Links
    https://github.com/huggingface/datasets/issues/1600,
    https://github.com/huggingface/trl/issues/915,
    https://github.com/unslothai/unsloth/issues/252
    """

    code = "LD536"
    name = "splits-taken-for-rows"
    summary = "All splits of a data set are used where the rows of one are needed."
    depth = "static"
    symptoms = (
        Symptom(r"'(?:Iterable)?DatasetDict' object has no attribute '\w+'"),
        Symptom(r"Column to remove \['(?:train|test|validation)'[^\]]*\] not in the dataset"),
        Symptom(r"`train_dataset` must be a `Dataset` .{0,40}got `DatasetDict`", "TRL"),
    )
    told_as = ("The trainer gets the DatasetDict with all splits instead of the train split.",)
    examples = (
        Example(
            "broken",
            "tests/scripts/splits_split_again.py",
            depth="static",
            requires={"datasets": ">=2"},
            why="what is loaded has no train_test_split",
        ),
        Example("healthy", "tests/scripts/one_split_taken.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run used them itself
        for found in splits_as_rows(case.program):
            yield self.finding(
                "error",
                _MESSAGES[found.use].format(kind=found.kind, name=found.name),
                location=Location("file", found.place.file, found.place.line),
                evidence=(Measurement("loaded without split", found.kind, str(found.loaded)),),
                proof=_PROOF,
                fixes=(
                    Fix('Load one split (split="train"), or take it (["train"]) here.', "manual"),
                ),
            )


_MESSAGES = {
    "unpacked": (
        "a {kind} is unpacked, which gives the names of its splits, as of any dictionary, and no "
        "rows."
    ),
    "method": "load_dataset without split returns a {kind}, which has no `{name}`: AttributeError.",
    "argument": (
        "load_dataset without split returns a {kind}, and {name} has to be the rows of one split: "
        "the trainer fails."
    ),
    "columns": (
        "column_names of a {kind} has the names of its splits, and {name} asks for columns: "
        "map raises ValueError."
    ),
}
