"""How far a run came, and why the question is open where it is: what exit code 2 goes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_doctor.errors import EvidenceError, LimitReached
from lora_doctor.results.depth import Depth
from lora_doctor.results.verification import Verification
from lora_doctor.text import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_doctor.engine.case import Case
    from lora_doctor.results.diagnosis import Skipped


@dataclass(frozen=True)
class Answer:
    """``before``: the training contract, where it was run. ``reached``: the deepest depth that was,
    ``None`` where there was nothing to look at. ``open``: why the question is, or ``None``.
    ``limit``: the limit of ours that struck."""

    before: Verification | None = None
    reached: Depth | None = None
    open: str | None = None
    limit: LimitReached | None = None


def answer_of(case: Case) -> Answer:
    """Gather what the depth of the case asks for."""
    found = _answer(case)
    if found.open is None and case.settings.data is not None and not case.has("supervision"):
        error = case.store.error("supervision")
        limit = error.limit if error is not None else None
        return Answer(found.before, found.reached, f"--data: {error}", limit)
    adapter = case.settings.adapter
    if found.open is None and adapter is not None and adapter.unread:
        return Answer(found.before, found.reached, adapter.unread)
    if found.open is None and case.settings.memory and not case.has("memory_plan"):
        error = case.store.error("memory_plan")
        if error is not None and error.limit is not None:
            return Answer(found.before, found.reached, str(error), error.limit)
    return found


def without_training(case: Case) -> Answer:
    """For a saved adapter that cannot be used as it is: the question is answered by its files, or
    by loading it, and no training contract is run."""
    return Answer(reached="static" if case.store.known("adapter_loading") is None else "meta")


def _answer(case: Case) -> Answer:
    asked = case.settings.depth
    if case.source.out_of_reach:
        return Answer(None, "static", _file_alone(case))
    read: Depth | None = "static" if _has_files(case) else None
    if asked == "static":
        return Answer(None, read, None if read else _nothing_to_read(case))
    if case.source.kind == "script":
        return Answer(None, read, _only_read(case))
    try:
        _ = case.structure
    except EvidenceError as error:
        return Answer(None, read, str(error), error.limit)
    if asked == "meta":
        return Answer(None, "meta", _not_made(case))
    try:
        run = case.verification.as_answer()
    except EvidenceError as error:
        return Answer(None, "meta", str(error), error.limit)
    if run.outcome == "undetermined":
        return Answer(run, "meta", run.reason, run.limit)
    return Answer(run, asked)


def _file_alone(case: Case) -> str:
    """What was read is the file that names the model, and not the model's own files."""
    file = case.recipe.file
    assert file is not None
    return (
        f"only {file.name} was read: {case.source.out_of_reach} (lora-doctor check FOLDER "
        f"--recipe {file})"
    )


def _not_made(case: Case) -> str | None:
    """Why PEFT has not been tried, which is what depth meta is for; ``None`` where it was."""
    injection = case.structure.injection
    if not injection.not_made:
        return None
    return (
        f"{case.recipe.peft_type} adapters cannot be made without weights "
        f"({injection.not_made}); --depth tiny makes them on a tiny model"
    )


def _has_files(case: Case) -> bool:
    """Whether there is something to look at without running anything."""
    return case.source.kind in ("script", "module", "environment") or case.has("static")


def _nothing_to_read(case: Case) -> str:
    return f"depth static was not reached: {case.why_not('static')}; --depth meta builds its class"


def _only_read(case: Case) -> str:
    from lora_doctor.engine.program import why_only_read

    why = why_only_read(case.source, case.asked)
    if why:
        return f"depth {case.settings.depth} was not reached: {why}"
    return (
        f"depth {case.settings.depth} was not reached: {case.source} is a training script, which "
        "is read and not run; give the model that it trains, or ask for --depth static"
    )


def strictly(skipped: Sequence[Skipped]) -> str | None:
    """What ``--strict`` says of these skipped rules; ``None`` when it takes them."""
    missed = [item for item in skipped if item.remedy is not None]
    if not missed:
        return None
    reasons = dict.fromkeys(item.reason for item in missed)
    codes = quoted(item.rule for item in missed)
    return f"--strict: skipped for a reason that can be mended: {codes}: {'; '.join(reasons)}"
