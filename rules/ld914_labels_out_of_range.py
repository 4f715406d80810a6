"""LD914: labels are out of range."""

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
    """A label is neither -100 nor an index below the number of tokens (or classes).

    ## What happens
    `IndexError: Target ... is out of bounds` on a CPU; `device-side assert triggered` on a GPU,
    which does not name a line and leaves the process unusable.

    ## Why
    -1 for "ignore" instead of -100, classes numbered from 1, a tokenizer with more tokens than the
    model, `num_labels` left at its default of 2.

    ## Versions
    All.

    ## Fix
    Use -100 for what is not supervised, number classes from 0, and set `num_labels` to that of the
    data.

    ## Links
    https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    code = "LD914"
    name = "labels-out-of-range"
    summary = "Labels are out of range: neither a token nor a class of the model."
    depth = "meta"
    symptoms = (
        Symptom(r"IndexError: Target -?\d+ is out of bounds"),
        Symptom(r"Assertion `t >= 0 && t < n_classes` failed"),
        Symptom(
            r"device-side assert triggered", context=r"\b(?:in|_nn\.) ?(?:cross_entropy|nll_loss)"
        ),
    )
    told_as = ("Labels are out of range, larger than num_labels.",)
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
        count = found.label_count
        outside = f"outside 0 to {count - 1:,}" if count else "below 0 that are not -100"
        certain = found.executed or any(label < 0 for label in found.wrong_labels)
        yield about(
            self.finding(
                "error" if certain else "warning",
                f"{portion(rows, found)} have labels {outside}: the loss raises an error.",
                location=of_data(case),
                evidence=(
                    looked_at(found),
                    Measurement("labels", list(found.wrong_labels), "the first of them"),
                    Measurement(
                        "number of valid labels",
                        found.label_count,
                        "the model of the run" if found.executed else "config.json",
                    ),
                    which(rows),
                ),
                proof=proof(found),
                explains=("forward", "loss-finite") if found.executed else (),
                fixes=(
                    Fix(
                        "Number labels from 0, and use -100 for tokens that are not supervised.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )
