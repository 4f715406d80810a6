"""LD916: rows of the evaluation set are also in the training set."""

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
    evaluated_on_trained,
)
from lora_doctor.rules._supervision import FEW, of_data, proof


class EvaluationSetTrainedOn(Rule):
    """Rows of the evaluation set are also, word for word, in the training set.

    ## What happens
    The evaluation loss falls together with the training loss, whatever the model learns:
    overfitting goes unnoticed, and the last checkpoint looks best.

    ## Why
    The same split was used twice, or a dataset with duplicate rows was split. In a script that is
    only read, a trainer is found whose `eval_dataset` is its `train_dataset` or was selected of it,
    also by the split that is loaded (`train[:5%]` of `train`).

    ## Versions
    All.

    ## Fix
    Evaluate on rows that are not in the training set.

    ## Links
    https://github.com/OpenRLHF/OpenRLHF/issues/1089,
    https://huggingface.co/docs/transformers/main_classes/trainer
    """

    code = "LD916"
    name = "evaluation-set-trained-on"
    summary = "Rows of the evaluation set are also in the training set."
    depth = "static"
    descriptions = (
        Symptom(
            r"\b(?:eval\w*|validation|test) (?:set|data\w*|split|rows?|samples?)\b.{0,40}\b(?:"
            r"overlap\w*|leak\w*|also in|contained in|part of)\b.{0,20}\btrain"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/chats.jsonl",
            eval_data="tests/data/rows/chats.jsonl",
            depth="meta",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/chats.jsonl",
            eval_data="tests/data/rows/other_chats.jsonl",
            depth="meta",
        ),
        Example(
            "broken",
            "tests/scripts/evaluated_on_trained_rows.py",
            depth="static",
            why="the evaluation set was selected of the training set",
            requires={"transformers": ">=4.41"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        read = list(self._of_script(case))
        if read:
            yield from read
            return
        found = case.supervision
        evaluation = found.evaluation
        if evaluation is None or not evaluation.rows_in_training:
            return
        same, rows = evaluation.rows_in_training, evaluation.rows
        yield self.finding(
            "warning" if same >= FEW * rows else "info",
            f"{same:,} of {rows:,} rows of the evaluation set are in the training set, word for "
            f"word.",
            location=of_data(case),
            evidence=(
                Measurement("rows of the evaluation set", rows, "its file"),
                Measurement("of these in the training set", same, "compared in all columns"),
            ),
            proof=proof(found),
            fixes=(Fix("Evaluate on rows that are not in the training set.", "manual"),),
        )

    def _of_script(self, case: Case) -> Iterator[Finding]:
        """The sets of a trainer in a script that was only read."""
        if case.has("dry_run") or not case.has("program"):
            return
        for found in evaluated_on_trained(case.program):
            yield self.finding(
                "warning",
                f"{found.trainer} evaluates on rows that it trains on: eval_dataset is "
                "train_dataset, or a part of it.",
                location=Location("file", found.place.file, found.place.line),
                evidence=(
                    Measurement("eval_dataset", found.evaluated, str(found.place)),
                    Measurement("train_dataset", found.trained, "the same call"),
                ),
                proof=Proof("read", "the calls that made the two sets were followed"),
                fixes=(Fix("Evaluate on rows that are not in the training set.", "manual"),),
            )
