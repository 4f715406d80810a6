"""LD557: more rows are selected than the data set has."""

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
    selected_beyond,
)


class RowsBeyondTheLast(Rule):
    """`dataset.select(range(1000))` on a file that has fewer rows.

    ## What happens
    `IndexError: Index 999 out of range for dataset of size 16`, before the training begins.

    ## Why
    `select` takes the rows of these numbers and does not stop at the last one. Scripts for large
    sets select their first thousand rows, and then run on a small file.

    Looked at is a JSON file beside the script whose rows are all there when they are selected.

    ## Versions
    All.

    ## Fix
    By hand: `range(min(1000, len(dataset)))`, or `split="train[:1000]"`, which stops at the last
    row.

    ## Links
    https://huggingface.co/docs/datasets/process
    """

    code = "LD557"
    name = "rows-beyond-the-last"
    summary = "More rows are selected than the data set has."
    depth = "static"
    symptoms = (Symptom(r"Index \d+ out of range for dataset of size \d+"),)
    examples = (
        Example(
            "broken",
            "tests/scripts/thousand_rows_selected.py",
            depth="static",
            why="the file has far fewer",
        ),
        Example("healthy", "tests/scripts/two_rows_selected.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run selected them
        for found in selected_beyond(case.program):
            yield self.finding(
                "error",
                f"{found.asked:,} rows are selected, and {found.file} has {found.rows:,}: the call "
                "raises IndexError.",
                location=Location("file", found.place.file, found.place.line),
                evidence=(Measurement("rows", found.rows, found.file),),
                proof=Proof("read", "the script, and the file"),
                fixes=(Fix("Select range(min(n, len(dataset))) instead.", "manual"),),
            )
