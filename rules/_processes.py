"""What rules about several processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_doctor.rule_api import Location, Measurement

if TYPE_CHECKING:
    from lora_doctor.rule_api import Case, DryRun, Processes, ScriptError

SOURCE = "run of several processes"


def failure(case: Case) -> tuple[Processes, ScriptError] | None:
    """The processes, and what ended the command; ``None`` where nothing did."""
    found, error = case.dry_run.processes, case.dry_run.error
    return None if error is None or found is None else (found, error)


def raised(error: ScriptError) -> Measurement:
    """The exception as evidence."""
    return Measurement("exception", f"{error.type}: {error.message}", SOURCE)


def at(run: DryRun, file: str, line: int) -> Location:
    """A line of the user's; the command where none is known."""
    if file:
        return Location("file", file, line or None)
    return Location("environment", " ".join(run.command)[:200])


def together(found: Processes) -> Measurement:
    """How many processes train together, and how they share the model."""
    kind = found.ran_type or "model not wrapped"
    return Measurement("processes", f"{found.met} of {found.asked}, {kind}", SOURCE)
