"""LD914: labels are no token and no class of the model."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Measurement,
    Rule,
    Symptom,
)
from lora_doctor.rules._supervision import about, looked_at, of_data, portion, proof, which


class LabelsOutOfRange(Rule):
    """A label is neither -100 nor a number from 0 up to the number of tokens (or classes).

    ## What happens
    `IndexError: Target ... is out of bounds` on a CPU; `device-side assert triggered` on a GPU,
    which names no line and leaves the process unusable.

    ## Why
    -1 for "ignore" instead of -100, classes that count from 1, a tokenizer that is larger than the
    model, `num_labels` left at 2.

    ## Versions
    All.

    ## Fix
    -100 for what is not supervised; classes from 0; `num_labels` of the data.

    ## Links
    https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    code = "LD914"
    name = "labels-out-of-range"
    summary = "Labels are no token and no class of the model."
    depth = "meta"
    symptoms = (
        Symptom(r"IndexError: Target -?\d+ is out of bounds"),
        Symptom(r"Assertion `t >= 0 && t < n_classes` failed"),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/labels_beyond.jsonl",
            depth="meta",
            why="one label beyond the vocabulary, one of -1",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/labels_within.jsonl",
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.supervision
        rows = found.labels_out_of_range
        if not rows:
            return
        certain = found.executed or any(label < 0 for label in found.wrong_labels)
        yield about(
            self.finding(
                "error" if certain else "warning",
                f"{portion(rows, found)} have labels that are not below {found.label_count}, or "
                f"below 0: "
                "the loss refuses them.",
                location=of_data(case),
                evidence=(
                    looked_at(found),
                    Measurement("labels", list(found.wrong_labels), "the first of them"),
                    Measurement(
                        "labels that there are",
                        found.label_count,
                        "the model of the run" if found.executed else "config.json",
                    ),
                    which(rows),
                ),
                proof=proof(found),
                explains=("forward", "loss-finite") if found.executed else (),
                fixes=(
                    Fix(
                        "Count labels from 0, and write -100 where nothing is to be learned.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )
