"""LD948: all rows of the training set have the same class."""

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


class OneClassInAllRows(Rule):
    """A classifier is trained on rows that all have the same label.

    ## What happens
    No error is raised, and the loss falls quickly to 0: the model learns to answer with that class
    whatever it is given. An evaluation set that was cut in the same way shows 100% accuracy.

    ## Why
    Many published sets are sorted by class (IMDB, for one): `select(range(1000))` or
    `split="train[:1000]"` without a shuffle takes rows of the first class only. Or a filter, or a
    mapping of labels to numbers, leaves one class. KTO with only desired (or only undesired)
    answers has nothing to compare them with.

    ## Versions
    All.

    ## Fix
    Shuffle before the rows are taken: `dataset.shuffle(seed=0).select(range(1000))`. It changes
    what is trained.

    ## Links
    https://huggingface.co/docs/datasets/process
    """

    code = "LD948"
    name = "one-class-in-all-rows"
    summary = "All rows of the training set have the same class."
    depth = "static"
    descriptions = (
        Symptom(
            r"\b(?:all|every) (?:\w+ )?(?:rows?|samples?|labels?)\b.{0,30}\b(?:same|one|single"
            r") (?:class|label)\b"
        ),
    )
    examples = (
        Example(
            "broken",
            "",
            script=CLASSES.replace(
                "Trainer(\n", "rows = sorted(rows, key=lambda row: row['labels'])[:32]\nTrainer(\n"
            ),
            why="the first rows of a set that is sorted by class",
        ),
        Example("healthy", "", script=CLASSES),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        run = case.has("dry_run")
        found = signal(case).one_label if run else case.first_batch.one_label
        if found is None:
            return
        source = "the training set, every row" if run else "the rows that the script says"
        yield self.finding(
            "warning",
            f"All {found.rows:,} rows of the training set have the label {found.label}: the model "
            "learns to answer with it whatever it is given.",
            location=Location("environment", "training data"),
            evidence=(
                Measurement("rows", found.rows, source),
                Measurement(f"values of {found.column}", found.label, source),
                *(
                    [Measurement("classes of the model", found.classes, "its config")]
                    if found.classes
                    else []
                ),
            ),
            proof=Proof("measured", source),
            fixes=(
                Fix(
                    "Take rows of every class: shuffle the set before its first rows are selected.",
                    "manual",
                ),
            ),
        )
