"""What rules on training data say alike: how many rows, of which sample, and how sure it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, EvidenceError, Finding, Location, Measurement, Proof

if TYPE_CHECKING:
    from lora_doctor.rule_api import RowSet, Supervision

#: Below this share of the rows a loss of some of them is worth knowing, and no more.
FEW = 0.02
#: Rows that a finding names.
_NAMED = 2
LOSS = {
    "all": "every token",
    "assistant": "the assistant's turns",
    "completion": "the completion",
    "response": "what follows the response marker",
    "given": "the labels as provided",
}


def of_data(case: Case) -> Location:
    """The file of the data, where it is known."""
    data = case.settings.data
    if data is None:
        return Location("environment", "training data")
    return Location("file", str(data.training))


def of_texts(case: Case) -> Supervision:
    """The evidence, for a rule about the texts and what becomes of them before the collator.

    Raises:
        EvidenceError: it comes from the batches of a run.
    """
    found = case.supervision
    if found.executed:
        raise EvidenceError(
            "a dry run sees the batches, not the texts that they were made of; lora-doctor check "
            "MODEL --data FILE checks the texts",
            lacks="texts",
        )
    return found


def portion(rows: RowSet, found: Supervision) -> str:
    """Such as ``12 of 256 rows``."""
    return f"{rows.count:,} of {found.rows_seen:,} rows"


def is_few(rows: RowSet, found: Supervision) -> bool:
    return rows.count < FEW * found.rows_seen


def about(finding: Finding, rows: RowSet) -> Finding:
    """The finding, with the rows that show it."""
    return replace(finding, rows=rows.numbers[:_NAMED])


def proof(found: Supervision) -> Proof:
    """The run's own batches were seen, or rows were made by the model's tokenizer."""
    if found.executed:
        return Proof("executed", f"the rows were examined ({found.origin})")
    return Proof("measured", f"the rows were examined ({found.origin})")


def looked_at(found: Supervision) -> Measurement:
    """What the numbers of the finding are numbers of."""
    return Measurement("rows examined", found.rows_seen, found.origin)


def loss_on(found: Supervision) -> Measurement:
    return Measurement("loss computed on", LOSS[found.loss_on], found.loss_from)


def which(rows: RowSet) -> Measurement:
    return Measurement("row numbers", list(rows.numbers), "the first of them, counted from 1")
