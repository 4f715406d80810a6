"""LD915: the evaluation set has no rows."""

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
from lora_doctor.rules._supervision import of_data


class EvaluationSetEmpty(Rule):
    """The file with the evaluation data is empty.

    ## What happens
    No evaluation loss, no best checkpoint, no early stopping; `load_best_model_at_end` fails after
    hours of training.

    ## Why
    A filter that left nothing, or a split of a small set.

    ## Versions
    All.

    ## Fix
    Add rows to evaluate on.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/trainer
    """

    code = "LD915"
    name = "evaluation-set-empty"
    summary = "The evaluation set has no rows."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\b(?:eval|evaluation|validation) (?:set|data\w*|split|file)\b.{0,20}\b(?:is |was"
            r" )?empty"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/chats.jsonl",
            eval_data="tests/data/rows/none.jsonl",
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
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.supervision
        if found.evaluation is None or found.evaluation.rows:
            return
        yield self.finding(
            "warning",
            "The evaluation set has no rows: nothing will be measured on it.",
            location=_of_evaluation(case),
            evidence=(Measurement("rows", 0, "the evaluation set"),),
            proof=Proof("executed" if found.executed else "measured", "its rows were counted"),
            fixes=(Fix("Add rows to evaluate on.", "manual"),),
        )


def _of_evaluation(case: Case) -> Location:
    data = case.settings.data
    if data is None or data.evaluation is None:
        return of_data(case)
    return Location("file", str(data.evaluation))
