"""LD926: labels are shifted by the data's code, and once more by the model."""

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
from lora_doctor.rules._dry_run_script import LOOP, MODEL


class LabelsShiftedTwice(Rule):
    """The label of each token is the token that follows, and the model's loss shifts labels by
    itself: each token is trained to predict the one after the next.

    ## What happens
    Nothing is raised, and the loss falls, though not as far as it could. What the trained model
    writes leaves out every other token.

    ## Why
    Classes of transformers for causal language models shift labels inside `forward`: `labels` are
    to be the `input_ids`, with -100 where no loss is taken. Code that computes its own cross
    entropy shifts them before.

    Found by execution: the model's loss on a batch of the run is the cross entropy of its logits
    with the labels shifted by one.

    ## Versions
    All.

    ## Fix
    Leave the shift out: `labels = input_ids.clone()`, masked where no loss is taken.

    ## Links
    https://huggingface.co/docs/transformers/tasks/language_modeling
    """

    code = "LD926"
    name = "labels-shifted-twice"
    summary = "Labels are shifted by the data's code, and once more by the model."
    depth = "static"
    descriptions = (
        Symptom(r"\blabels?\b.{0,40}\bshifted twice\b|\bshift\w* (?:the )?labels? twice"),
    )
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + LOOP.replace("labels=ids)", "labels=torch.roll(ids, -1, dims=1))"),
            why="each label is the next token already",
        ),
        Example("healthy", "", script=MODEL + LOOP),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.dry_run.shifted_labels
        if found is None:
            return
        source = "a batch of the run"
        yield self.finding(
            "error",
            f"{found.next_tokens} of {found.labels} labels are the token that follows already, and "
            "the model shifts labels by itself: each token is trained to predict the one after "
            "the next.",
            location=Location("environment", "training data"),
            evidence=(
                Measurement("loss of the model", found.loss, source),
                Measurement("cross entropy with labels shifted by one", found.shifted, source),
                Measurement("cross entropy with labels as they are", found.unshifted, source),
            ),
            proof=Proof("executed", source),
            fixes=(
                Fix(
                    "Leave the shift out: labels are the input_ids, with -100 where no loss is "
                    "taken.",
                    "manual",
                ),
            ),
        )
