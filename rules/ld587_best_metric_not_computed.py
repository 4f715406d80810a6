"""LD587: the best checkpoint is chosen by a metric that no evaluation computes."""

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
    metrics_not_computed,
    quoted,
)

_PROOF = Proof("read", "the calls were followed in the order in which the script makes them")


class BestMetricNotComputed(Rule):
    """The Trainer chooses the best checkpoint by a metric that its evaluation does not compute.

    ## What happens
    `KeyError: The metric_for_best_model training argument is set to 'eval_f1', which is not found
    in the evaluation metrics`, after the first evaluation: possibly hours after the start. With
    `EarlyStoppingCallback` and no metric at all, training ends before its first step with
    `AssertionError: EarlyStoppingCallback requires metric_for_best_model to be defined`.

    ## Why
    `load_best_model_at_end` compares `eval_loss` if no other metric is named. With a dictionary of
    evaluation sets every metric carries the name of its set (`eval_questions_loss`), and there is
    no `eval_loss`. Another metric exists only if `compute_metrics` returns it under this name.

    ## Versions
    All. Older releases of transformers fail with `KeyError: 'eval_f1'` when they save the
    checkpoint, and do not find the labels of a PEFT model without `task_type`: `eval_loss` is
    missing then, too, and `label_names=["labels"]` helps. A dry run finds that.

    ## Fix
    By hand: name a metric that is computed, or return it from `compute_metrics`.

    ## Links
    https://github.com/huggingface/transformers/issues/40217,
    https://github.com/huggingface/sentence-transformers/issues/2749,
    https://github.com/huggingface/transformers/issues/33420
    """

    code = "LD587"
    name = "best-metric-not-computed"
    summary = "The best checkpoint is chosen by a metric that no evaluation computes."
    depth = "static"
    symptoms = (
        Symptom(r"`?metric_for_best_model`? training argument is set to '\w+', which is not found"),
        Symptom(r"\bKeyError: ['\"]eval_(?!dataset)\w+['\"]\s*$"),
        Symptom(r"EarlyStoppingCallback requires (?:metric_for_best_model|load_best_model_at_end)"),
    )
    told_as = ("The metric for the best model is not among the evaluation metrics.",)
    examples = (
        Example(
            "broken",
            "tests/scripts/best_by_metric_of_no_set.py",
            depth="static",
            why="two evaluation sets, and no eval_loss",
            requires={"transformers": ">=4.41"},
        ),
        Example(
            "healthy",
            "tests/scripts/best_by_own_metric.py",
            depth="static",
            requires={"transformers": ">=4.41"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run evaluates, and chooses a checkpoint
        for found in metrics_not_computed(case.program):
            computed = quoted(found.computed, 4)
            yield self.finding(
                "error",
                f"{found.trainer} looks for {found.metric} after each evaluation, which computes "
                f"{computed} only: KeyError after the first evaluation."
                if found.metric
                else "EarlyStoppingCallback gets no metric_for_best_model, which raises "
                "AssertionError before the first step.",
                location=Location("file", found.place.file, found.place.line),
                evidence=(
                    Measurement("metric_for_best_model", found.metric or "not given", found.source),
                    Measurement("trainer", found.trainer, str(found.trainer_place)),
                ),
                proof=_PROOF,
                fixes=(
                    Fix(
                        f"Set metric_for_best_model to one of {computed}, or compute the other one."
                        if found.computed
                        else "Set metric_for_best_model (and greater_is_better), for example "
                        'metric_for_best_model="eval_loss".',
                        "manual",
                    ),
                ),
            )
