"""What the run took: rows of times that add up to the total, and what was not gathered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_doctor.reports._text import many, memory, seconds, shorten, visible

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.verification import Verification

#: What each piece of evidence is, where its name alone does not say it.
_PIECES = {
    "environment": "installed packages",
    "static": "files of the model",
    "structure": "model at full size, without weights",
    "tiny": "tiny model, built and trained",
    "full": "real weights, loaded and trained",
    "dry_run": "your command, run small",
    "fixes": "fixes, tried",
    "memory_plan": "memory plan",
    "supervision": "training data",
    "loading": "names in the checkpoint",
    "adapter": "saved adapter",
    "adapter_loading": "saved adapter, loaded",
}


@dataclass(frozen=True)
class Cost:
    """One row. ``part_of``: it is inside the row above, and is not added."""

    what: str
    time: str
    peak: str
    source: str
    part_of: bool = False


@dataclass(frozen=True)
class Costs:
    """``missing``: name and reason of the evidence that could not be had, or was not asked for."""

    rows: tuple[Cost, ...]
    total: str
    missing: tuple[tuple[str, str], ...]


def costs(diagnosis: Diagnosis, limit: int) -> Costs:
    """What was gathered or run; the remainder of the total is a row of its own."""
    rows: list[Cost] = []
    spent = 0.0
    inside = {"tiny": diagnosis.before, "full": diagnosis.before, "fixes": diagnosis.after}
    inside["dry_run"] = diagnosis.before
    for item in diagnosis.gathered[:40]:
        if item.unavailable:
            continue
        spent += item.seconds
        name = _PIECES.get(item.name, visible(item.name, 80))
        peak = memory(item.peak_memory) if item.peak_memory is not None else ""
        rows.append(Cost(name, seconds(item.seconds), peak, shorten(visible(item.source), limit)))
        run = inside.pop(item.name, None)
        if run is not None and run.checks and run.seconds <= item.seconds:
            rows.append(_contract(run))
    rest = diagnosis.seconds - spent
    if rest > 0:
        rows.append(Cost("the rest", seconds(rest), "", "starting, importing libraries, the rules"))
    missing = [
        (_PIECES.get(item.name, visible(item.name, 80)), visible(item.unavailable, limit))
        for item in diagnosis.gathered[:40]
        if item.unavailable
    ]
    return Costs(tuple(rows), seconds(diagnosis.seconds), tuple(missing))


def _contract(run: Verification) -> Cost:
    peak = memory(run.peak_memory) if run.peak_memory is not None else ""
    source = f"{many(run.steps, 'step')} on {visible(run.device, 60)}"
    return Cost("of which the training contract", seconds(run.seconds), peak, source, True)
