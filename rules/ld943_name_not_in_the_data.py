"""LD943: a column or a split is named that the data set does not have."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    AbsentName,
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    absent_names,
)


class NameNotInTheData(Rule):
    """A script names a column or a split that its data set does not have.

    ## What happens
    `ValueError: Column to remove ['id'] not in the dataset`, `Original column name instruction not
    in the dataset`, `Column 'train' doesn't exist`, `Unknown split "validation". Should be one of
    ['train']`, or `KeyError: 'validation'`, before the training begins.

    ## Why
    A file that has no splits has one, called `train`. `split="train"` returns its rows, which have
    columns and no splits. Columns are renamed between data sets, and a file for evaluation often
    has fewer than that for training.

    Looked at are rows that the script writes out, and JSON lines beside it; and the splits that
    `data_files` names.

    ## Versions
    All.

    ## Fix
    By hand: name one that is there. `remove_columns=dataset.column_names` removes all of them.

    ## Links
    https://github.com/zjunlp/DeepKE/issues/271,
    https://github.com/hiyouga/LlamaFactory/issues/1312,
    https://github.com/ziansu/prorec/issues/2,
    https://github.com/llSourcell/Doctor-Dignity/issues/22
    """

    code = "LD943"
    name = "name-not-in-the-data"
    summary = "A column or a split is named that the data set does not have."
    depth = "static"
    symptoms = (
        Symptom(r"Column to remove \[(?!'(?:train|test|validation)')[^\]]*\] not in the dataset"),
        Symptom(r"Original column name \S+ not in the dataset"),
        Symptom(r"Column '?(?:train|test|validation)'? (?:doesn't exist|not in the dataset)"),
        Symptom(r"Unknown split \"\w+\"\. Should be one of \["),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/column_not_there.py",
            depth="static",
            requires={"datasets": ">=2"},
            why="the rows have no column of that name",
        ),
        Example(
            "broken",
            "tests/scripts/split_not_there.py",
            depth="static",
            requires={"datasets": ">=2"},
            why="a single file has one split, which is called train",
        ),
        Example("healthy", "tests/scripts/columns_and_splits_there.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run asked for it
        for found in absent_names(case.program):
            yield self.finding(
                "error",
                _message(found),
                location=Location("file", found.place.file, found.place.line),
                evidence=(
                    Measurement(f"{found.kind}s", list(found.there) or "one split", "the script"),
                ),
                proof=Proof("read", "the script, and the file that it loads"),
                fixes=(Fix(f"Name a {found.kind} that is there.", "manual"),),
            )


def _message(found: AbsentName) -> str:
    there = f": there is {', '.join(found.there[:8])}" if found.there else ""
    if found.use in ("the rows", "the rows of one split"):
        return f"`{found.name}` is asked of {found.use}, which have no such column{there}."
    if found.use == "the splits":
        return f"`{found.name}` is asked of the splits of the data set, and none has it{there}."
    return f"{found.use} is given the {found.kind} `{found.name}`, which is not there{there}."
