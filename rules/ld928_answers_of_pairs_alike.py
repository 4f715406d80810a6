"""LD928: the chosen and the rejected answers of a preference set are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Severity,
    Symptom,
)
from lora_doctor.rules._dry_run_script import PAIRS
from lora_doctor.rules._training_signal import signal

if TYPE_CHECKING:
    from lora_doctor.rule_api import PreferencePairs

#: From this share of the rows on it is more than a few duplicates, and no run as intended.
_SOME, _MANY = 0.02, 0.5


class AnswersOfPairsAlike(Rule):
    """In rows of a preference set (DPO, reward models) the rejected answer is the chosen one.

    ## What happens
    No error is raised. The loss of such a row is a constant (0.693 for DPO and reward models), its
    gradient is 0, and so are the reward margins and accuracies in the log. If all rows are like
    that, nothing is learned.

    ## Why
    Both columns were made from the same field; a template or a post-processing step removed the
    difference; or the length limit cuts both answers off before they differ (a long prompt, and
    truncation that keeps the start).

    ## Versions
    All.

    ## Fix
    Correct the code that makes the two columns; with long prompts, raise `max_length` or keep the
    end. Only you know which answer should be preferred.

    ## Links
    https://huggingface.co/docs/trl/dataset_formats
    """

    code = "LD928"
    name = "answers-of-pairs-alike"
    summary = "The chosen and the rejected answers of a preference set are the same."
    depth = "static"
    descriptions = (
        Symptom(r"\bchosen\b.{0,20}\brejected\b.{0,40}\b(?:the same|identical|equal)\b"),
    )
    told_as = ("In DPO the chosen and the rejected answers are the same, the loss stays at 0.693.",)
    examples = (
        Example(
            "broken",
            "",
            script=PAIRS.replace("REJECTED", "answer"),
            why="both answers are the same",
        ),
        Example("healthy", "", script=PAIRS.replace("REJECTED", "answer[::-1]")),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        pairs = signal(case).pairs
        if pairs is None or pairs.alike_in_batch < _SOME * pairs.rows:
            return
        source = f"{pairs.rows} rows spread over the training set, through the run's own collator"
        yield self.finding(
            _severity(pairs),
            f"In {pairs.alike_in_batch} of {pairs.rows} rows the chosen and the rejected answer "
            f"are the same{_where(pairs)}: such rows give no gradient.",
            location=Location("environment", "training data"),
            evidence=(
                Measurement("rows compared", pairs.rows, source),
                Measurement("alike in the set", pairs.alike, source),
                Measurement("alike in the batches", pairs.alike_in_batch, source),
            ),
            proof=Proof("executed", source),
            fixes=(
                Fix(
                    "Correct the code that makes the two answers"
                    + ("." if pairs.alike else ", or raise the length limit that cuts both off."),
                    "manual",
                ),
            ),
        )


def _severity(pairs: PreferencePairs) -> Severity:
    if pairs.alike_in_batch == pairs.rows:
        return "error"
    return "warning" if pairs.alike_in_batch >= _MANY * pairs.rows else "info"


def _where(pairs: PreferencePairs) -> str:
    return " once the collator has cut them" if pairs.alike < pairs.alike_in_batch else ""
