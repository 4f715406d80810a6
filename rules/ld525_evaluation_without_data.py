"""LD525: a trainer should evaluate, but gets no evaluation data."""

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
    evaluations_without_data,
)

_PROOF = Proof("read", "the calls were followed in the order in which the script makes them")


class EvaluationWithoutData(Rule):
    """The training arguments ask for evaluation, but the trainer gets no `eval_dataset`.

    ## What happens
    `ValueError: You have set args.eval_strategy to ... but you didn't pass an eval_dataset to
    Trainer` when the trainer is created. transformers before 4.45 raises it at the first
    evaluation, possibly after hours of training.

    ## Why
    `eval_strategy` and `eval_dataset` are set in two places.

    ## Versions
    All of transformers.

    ## Fix
    By hand: pass an `eval_dataset`, or remove `eval_strategy`.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/trainer
    """

    code = "LD525"
    name = "evaluation-without-data"
    summary = "The trainer should evaluate, but gets no eval_dataset."
    depth = "static"
    symptoms = (
        Symptom(r"eval(?:uation)?_strategy.{0,60}but you didn't pass an `?eval_dataset"),
        Symptom(r"Trainer: evaluation requires an eval_dataset"),
    )
    told_as = (
        "No evaluation is run: eval_strategy is set and there is no eval_dataset.",
        "An eval dataset is required and none was passed.",
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/evaluated_without_data.py",
            depth="static",
            why="eval_strategy without eval_dataset",
            requires={"transformers": ">=4.41"},
        ),
        Example(
            "healthy",
            "tests/scripts/best_model_evaluated.py",
            depth="static",
            requires={"transformers": ">=4.41"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run created the trainer itself
        for found in evaluations_without_data(case.program):
            yield self.finding(
                "error",
                f"{found.trainer} is set to evaluate ({found.name}={found.strategy!r}), but gets "
                "no eval_dataset, which raises ValueError.",
                location=Location("file", found.place.file, found.place.line),
                evidence=(
                    Measurement(found.name, found.strategy, str(found.place)),
                    Measurement("eval_dataset", "not given", str(found.trainer_place)),
                ),
                proof=_PROOF,
                fixes=(Fix(f"Pass an eval_dataset to {found.trainer}, or remove {found.name}.",
                           "manual"),),
            )  # fmt: skip
