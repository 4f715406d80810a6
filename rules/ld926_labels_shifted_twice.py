"""LD926: the labels are shifted by the data code and again by the model."""

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
    """The label of each token is already the next token, and the model shifts the labels again, so
    each token is trained to predict the one after the next.

    ## What happens
    No error is raised, and the loss falls, though not as far as it could. The trained model skips
    every other token when it generates text.

    ## Why
    Causal language models in transformers shift the labels inside `forward`: `labels` should be the
    `input_ids`, with -100 where no loss is wanted. Code that computes its own cross entropy has to
    shift them itself, and is often the source of such labels.

    A dry run finds this by comparing the model's loss on a batch of the run with the cross entropy
    of its logits, with labels shifted by one and not shifted.

    ## Versions
    All.

    ## Fix
    Remove the shift: `labels = input_ids.clone()`, set to -100 where no loss is wanted.

    ## Links
    https://huggingface.co/docs/transformers/tasks/language_modeling
    """

    code = "LD926"
    name = "labels-shifted-twice"
    summary = "The labels are shifted by the data code and again by the model."
    depth = "static"
    descriptions = (
        Symptom(r"\blabels?\b.{0,40}\bshifted twice\b|\bshift\w* (?:the )?labels? twice"),
    )
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + LOOP.replace("labels=ids)", "labels=torch.roll(ids, -1, dims=1))"),
            why="each label is already the next token",
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
            f"{found.next_tokens} of {found.labels} labels are already the next token, and the "
            "model shifts the labels again: each token is trained to predict the one after the "
            "next.",
            location=Location("environment", "training data"),
            evidence=(
                Measurement("loss of the model", found.loss, source),
                Measurement("cross entropy with labels shifted by one", found.shifted, source),
                Measurement("cross entropy with labels not shifted", found.unshifted, source),
            ),
            proof=Proof("executed", source),
            fixes=(
                Fix(
                    "Remove the shift: labels are the input_ids, with -100 where no loss is "
                    "wanted.",
                    "manual",
                ),
            ),
        )
