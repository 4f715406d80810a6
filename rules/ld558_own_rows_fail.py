"""LD558: the script's own rows fail in its collator, its trainer or the loss."""

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
    asked_of_tokenizer,
    misplaced_arguments,
    own_rows,
    selected_beyond,
    splits_as_rows,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import FirstBatch, OwnRows

_DONE = {
    "rows": "The rows of the script cannot be made",
    "collator": "The collator of the script cannot be made",
    "trainer": "{trainer} cannot be made with the rows and the arguments of the script",
    "batch": "No batch can be made of the rows of the script",
    "loss": "No loss can be computed of the rows of the script",
}


class OwnRowsFail(Rule):
    """The rows that the script says fail before the first step: in its `map`, in the collator, in
    the trainer or in the loss.

    ## What happens
    The script stops before or at the first step, after the model was loaded: `KeyError` in a
    function of `map`, `Unable to create tensor` or `expected sequence of length 15 at dim 1` in the
    collator, `Target 2 is out of bounds` or `The model did not return a loss` in the model.

    ## Why
    Rows, collator, arguments and model are each valid by themselves. Where the script says all of
    them (rows written out, or in a JSON or CSV file next to it, and functions of plain code),
    lora-doctor makes the set with the installed `datasets`, and the collator and the trainer by
    their own classes on a tiny model with the real vocabulary, positions and number of labels;
    then it takes up to eight batches and their loss. The functions of the script are not run: each
    of their operations is worked out by lora-doctor, and what is not plain code is left alone.

    ## Versions
    What the installed releases raise.

    ## Fix
    By hand: the message says what does not fit. Often it is the collator (`DataCollatorForSeq2Seq`
    and `DataCollatorForTokenClassification` pad `labels`, `default_data_collator` pads nothing),
    `num_labels` of the model, the type of the labels, or a column with another name.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/data_collator
    """

    code = "LD558"
    name = "own-rows-fail"
    summary = "The script's own rows fail in its collator, its trainer or the loss."
    depth = "tiny"
    examples = (
        Example(
            "broken",
            "tests/scripts/labels_not_padded.py",
            requires={"transformers": ">=4.46"},
            why="DataCollatorWithPadding pads what the tokenizer makes, and not the labels",
        ),
        Example(
            "healthy",
            "tests/scripts/labels_padded.py",
            requires={"transformers": ">=4.46"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run took them itself
        rows = own_rows(case.program)
        if rows is None:
            return
        found = case.first_batch
        if found.stage and not _is_told_already(case, found):
            alike = case.other_rules.with_symptom(f"{found.kind}: {found.message}")
            yield self._of(rows, found, alike)

    def _of(self, rows: OwnRows, found: FirstBatch, alike: list[str]) -> Finding:
        name = rows.name.rpartition(".")[2]
        what = _DONE[found.stage].format(trainer=name)
        place = rows.place
        return self.finding(
            "error",
            f"{what}: {found.kind}: {found.message}",
            location=Location("file", place.file, found.line or place.line),
            evidence=(
                Measurement(
                    "raised at", found.raised_at or "a function of the script", found.release
                ),
                Measurement("rows", found.rows, "the script, and files that it reads"),
                Measurement("columns for the trainer", ", ".join(found.columns), "the script"),
                Measurement("batches collated", found.batches, f"{name}, on a tiny model"),
                *(
                    [Measurement("rules about this message", ", ".join(alike[:2]), "symptoms")]
                    if alike
                    else []
                ),
            ),
            proof=Proof(
                "executed",
                f"the script's rows, its collator and {name} by their installed classes on a tiny "
                "model; its own functions were worked out, not run",
            ),
            fixes=(
                Fix("Change the rows, the collator or the model as the message says.", "manual"),
            ),
        )


def _is_told_already(case: Case, found: FirstBatch) -> bool:
    """Whether a rule about the cause tells it: LD536, LD550, LD554, LD556, LD557."""
    of_tokenizer = "chat_template" in found.message or "mask token" in found.message
    if of_tokenizer and any(asked_of_tokenizer(case.program)):
        return True
    if found.stage == "rows":
        return any(selected_beyond(case.program)) or any(splits_as_rows(case.program))
    if found.stage != "trainer":
        return False
    if any(misplaced_arguments(case.program)):
        return True
    return case.has("refused_trainer") and bool(case.refused_trainer.message)
