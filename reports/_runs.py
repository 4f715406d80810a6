"""The executed training contract for the page: checks side by side, runs, and their losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_doctor.reports._checks import check_value
from lora_doctor.reports._limits import Limits
from lora_doctor.reports._text import memory, number, seconds, shorten, shown, visible
from lora_doctor.reports._words import contract_rows, failure_words, shapes

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.verification import Check, Verification


def contract(
    diagnosis: Diagnosis,
) -> tuple[list[dict[str, Any]], list[tuple[str, list[str]]]]:
    """The checks that ran, and the names of those that did not under the reason why."""
    rows: list[dict[str, Any]] = []
    not_run: dict[str, list[str]] = {}
    for row in contract_rows(diagnosis.before, diagnosis.after)[:40]:
        meaning = row.meaning or visible(row.name, 80)
        checks = [check for check in (row.before, row.after) if check is not None]
        if all(check.status == "skipped" for check in checks):
            not_run.setdefault(visible(checks[-1].detail, 300), []).append(meaning)
            continue
        expected = next((one.expected for one in reversed(checks) if one.expected), "")
        rows.append(
            {
                "meaning": meaning,
                "expected": visible(expected, 160),
                "before": _cell(row.before, diagnosis.before),
                "after": _cell(row.after, diagnosis.after),
            }
        )
    return rows, list(not_run.items())


def _cell(check: Check | None, run: Verification | None) -> dict[str, str] | None:
    if check is None:
        return None
    failure = run.failure if run else None
    # The exception itself is shown with the run.
    told = check.raised is not None and failure is not None and failure.check == check.name
    detail = visible(check.detail, 300) if check.status != "passed" and not told else ""
    return {
        "status": check.status,
        "value": check_value(check, run),
        "detail": detail,
    }


def runs(diagnosis: Diagnosis, limits: Limits) -> list[dict[str, Any]]:
    """The executed verifications with their losses, on one scale."""
    first = "Before the fixes" if diagnosis.after else "The run"
    pairs = [("before", first, diagnosis.before), ("after", "After the fixes", diagnosis.after)]
    # One that never began has only its reason, which the verdict tells.
    executed = [
        (key, label, run)
        for key, label, run in pairs
        if run and (run.checks or run.failure or run.batches or diagnosis.after)
    ]
    return [{"key": key, **_run(label, run, limits)} for key, label, run in executed]


def _run(label: str, run: Verification, limits: Limits) -> dict[str, Any]:
    facts = [("Outcome", run.outcome), ("Class", visible(run.model_class, 120))]
    if run.model_parameters:
        small = run.depth == "tiny"
        size = f"{run.model_parameters:,} parameters"
        facts.append(("Tiny model" if small else "Model, real weights", size))
    where = [visible(run.device, 60), visible(run.dtype, 40)]
    facts.append(("Ran on", ", ".join(filter(None, where))))
    facts.append(("Optimizer steps", str(run.steps)))
    if run.step_seconds is not None:
        facts.append(("Time of a step", seconds(run.step_seconds)))
    if run.peak_memory is not None:
        facts.append(("Peak memory of this run", memory(run.peak_memory)))
    if run.patches:
        facts.append(("Patches", shown(run.patches, limits.text)))
    return {
        "label": label,
        "outcome": run.outcome,
        "facts": [(name, value) for name, value in facts if value],
        "reason": visible(run.reason, limits.text),
        "failure": failure_words(run),
        "traceback": visible(run.failure.traceback, limits.traceback, lines=True)
        if run.failure
        else "",
        "notes": [visible(note.text, limits.text) for note in run.notes[:20]],
        "batches": [
            {
                "kind": visible(batch.kind, 80),
                "inputs": shorten(shapes(batch.inputs), limits.text),
                "loss": visible(batch.loss, 160),
                "first": number(batch.losses[0]) if batch.losses else "",
                "last": number(batch.losses[-1]) if batch.losses else "",
                "steps": len(batch.losses),
                "notes": [visible(note.text, limits.text) for note in batch.notes[:5]],
            }
            for batch in run.batches[:8]
        ],
    }
