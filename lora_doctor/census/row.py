"""One row of the census: a pair, diagnosed as `check` would and then tried in the other ways."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_doctor.census.cells import cell
from lora_doctor.census.pairs import Pair
from lora_doctor.engine import registry
from lora_doctor.engine.case import Case
from lora_doctor.engine.diagnose import diagnose
from lora_doctor.engine.limits import GIB, Limits
from lora_doctor.engine.settings import Settings
from lora_doctor.errors import LoraDoctorError
from lora_doctor.recipe.edit import REMOVE, Edit
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.from_json import from_json
from lora_doctor.results.verification import Verification
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.model_source import parse_model
from lora_doctor.text import single_line

#: The columns, in their order: what is asked of each architecture.
COLUMNS: Mapping[str, str] = {
    "builds": "a tiny model of the class can be built and takes a batch",
    "peft_default": "PEFT's own default target modules train",
    "all_linear": 'target_modules="all-linear" trains',
    "recipe": "the recipe that lora-doctor proposes trains",
    "gradient_checkpointing": "the recipe trains with gradient checkpointing (not reentrant)",
    "load_in_4bit": "the recipe trains on a model loaded in 4 bits",
    "load_in_8bit": "the recipe trains on a model loaded in 8 bits",
    "bfloat16": "the recipe trains in bfloat16 on a CPU",
    "float16": "the recipe trains in float16 on a CPU",
    "save_reload": "saved and reloaded adapters give the same logits",
    "merge": "merged weights give the same logits",
}
#: The rule that says no more than what the cell says without it.
UNEXPLAINED = "LD001"
#: Beside what the recipe says; a recipe without `target_modules` is PEFT's own default.
_WAYS: Mapping[str, tuple[Edit, ...]] = {
    "peft_default": (Edit("target_modules", REMOVE), Edit("target_parameters", REMOVE)),
    "all_linear": (Edit("target_modules", "all-linear"), Edit("target_parameters", REMOVE)),
    "gradient_checkpointing": (
        Edit("gradient_checkpointing", True),
        Edit("gradient_checkpointing_kwargs", {"use_reentrant": False}),
    ),
    "load_in_4bit": (Edit("load_in_4bit", True),),
    "load_in_8bit": (Edit("load_in_8bit", True),),
    "bfloat16": (Edit("dtype", "bfloat16"),),
    "float16": (Edit("dtype", "float16"),),
}


@dataclass(frozen=True)
class Cell:
    """``status`` ``yes``, ``no`` or ``unknown``; ``reason`` in one sentence when it is not yes."""

    status: str
    reason: str = ""
    #: ``False`` where nothing was tried, because the model does not build.
    reached: bool = True


@dataclass(frozen=True)
class Row:
    """What is known about one pair.

    ``recipe``: what to copy, PEFT's and transformers' names. ``parameters``: of the default
    config. ``findings``: codes of rules that fired on our own recipe. ``seconds`` on the clock,
    ``processor_seconds`` and ``peak_memory`` in bytes, of the largest process, are what the row
    cost; they are no part of the table.
    """

    auto_class: str
    model_type: str
    model_class: str = ""
    parameters: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    cells: Mapping[str, Cell] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_memory: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        return from_json(cls, data)


def judge(pair: Pair, worker: Worker, limits: Limits, keep: Path | None = None) -> Row:
    """Everything about one pair. Never raises for what the model does: that is in the cells.

    Args:
        worker: a child process with the libraries imported.
        keep: a folder for the tiny model and its batch.
    """
    import time

    began, used = time.perf_counter(), worker.processor_seconds
    source = parse_model(f"arch:{pair.model_type}")
    asked = as_recipe({"model_class": pair.auto_class})
    with closing(Case(source, asked, Settings("tiny", "cpu", limits=limits), worker)) as case:
        row = _judged(pair, case, worker, keep)
    return replace(
        row,
        seconds=round(time.perf_counter() - began, 3),
        processor_seconds=round(worker.processor_seconds - used, 3),
    )


def _judged(pair: Pair, case: Case, worker: Worker, keep: Path | None) -> Row:
    try:
        diagnosis = diagnose(case, registry.find_rules(), execute_fixes=False)
    except LoraDoctorError as error:
        cells = {"builds": Cell("no", str(error))}
        return Row(pair.auto_class, pair.model_type, cells=_complete(cells))
    structure, before = diagnosis.structure, diagnosis.before
    cells = {"builds": _builds(diagnosis)}
    recipe: Recipe | None = None
    peaks: list[int] = []
    if structure is not None and before is not None and cells["builds"].status == "yes":
        recipe = diagnosis.recipe
        said = cell(before)
        cells["recipe"] = Cell(said["status"], said["reason"])
        cells["save_reload"] = _check(before, "save-reload")
        cells["merge"] = _check(before, "merge")
        refused = structure.injection.error
        if refused is not None and cells["recipe"].status == "yes":
            # The tiny model has fewer layers, and what PEFT refuses may be in those.
            why = single_line(refused.message, 2000)
            cell_of_class = Cell("no", f"attaches: at full size {refused.type}: {why}")
            cells["recipe"] = _explained(cell_of_class, "attaches", diagnosis)
        for name, check in _failed(before).items():
            cells[name] = _explained(cells[name], check, diagnosis)
        ways, peak = _other_ways(case, recipe, worker, keep)
        cells.update(ways)
        peaks.append(peak)
    peaks += [item.peak_memory or 0 for item in case.gathered]
    return Row(
        pair.auto_class,
        pair.model_type,
        model_class=structure.model_class if structure else "",
        parameters=structure.total_parameters if structure else 0,
        recipe=_to_copy(recipe) if recipe else {},
        cells=_complete(cells),
        findings=tuple(finding.rule for finding in diagnosis.findings),
        peak_memory=max(peaks, default=0),
    )


def _builds(diagnosis: Diagnosis) -> Cell:
    """Whether there is a model and a batch that it takes without any adapter."""
    if diagnosis.limit is not None:  # of ours: it says nothing about the model
        return Cell("unknown", diagnosis.undetermined or "")
    if diagnosis.structure is None or diagnosis.before is None:
        return Cell("no", diagnosis.undetermined or "no model could be built")
    before = diagnosis.before
    if before.outcome == "undetermined" and not before.batches:
        return Cell("no", before.reason)
    return Cell("yes")


def _failed(result: Verification) -> dict[str, str]:
    """Columns of the recipe's own run that say no, and the check each is about."""
    failed = [check.name for check in result.failed_checks]
    columns = {"recipe": failed[0]} if failed else {}
    named = {"save_reload": "save-reload", "merge": "merge"}
    return columns | {column: check for column, check in named.items() if check in failed}


def _explained(found: Cell, check: str, diagnosis: Diagnosis) -> Cell:
    """The words of the rule that accounts for a failed check, where one does."""
    for finding in diagnosis.findings:
        if check in finding.explains and finding.rule != UNEXPLAINED:
            return Cell(found.status, f"{single_line(finding.message, 2000)} ({finding.rule})")
    return found


def _check(result: Verification, name: str) -> Cell:
    check = result.check(name)
    if check is None or check.status == "skipped":
        return Cell("unknown", check.detail if check and check.detail else "not run")
    if check.status == "passed":
        return Cell("yes")
    return Cell("no", f"{name}: {check.value} {check.detail}".strip())


def _other_ways(
    case: Case, recipe: Recipe, worker: Worker, keep: Path | None
) -> tuple[dict[str, Cell], int]:
    """The cells beside the recipe's own, and the peak memory of the process that made them."""
    ways = {}
    for name, edits in _WAYS.items():
        edited = recipe.edit(edits)
        # Complete: what is left out is PEFT's own default, not ours.
        ways[name] = Recipe(edited.values, edited.origins, complete=True).to_json()
    limits = case.settings.limits.of_tiny()
    outcome = worker.run(
        "lora_doctor.census.cells:gather",
        {
            "source": case.source.to_json(),
            "ways": ways,
            "own": recipe.to_json(),
            "keep": str(keep) if keep is not None else None,
            "made": case.tiny_model_file(recipe),
        },
        time_limit=limits.seconds,
        memory_limit=limits.memory,
    )
    if outcome.failure is not None:
        reason = f"{outcome.failure.kind}: {outcome.failure.message}"
        return {name: Cell("unknown", reason) for name in _WAYS}, outcome.peak_rss
    return {name: Cell(**item) for name, item in outcome.value.items()}, outcome.peak_rss


def _complete(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """All columns, in their order; what was not reached says so."""
    return {name: cells.get(name, Cell("unknown", "not reached", False)) for name in COLUMNS}


def _to_copy(recipe: Recipe) -> dict[str, Any]:
    """The recipe as somebody writes it: without what only says that nothing is set."""
    return {key: value for key, value in recipe.values.items() if value is not None}


#: A row takes a few seconds; what takes so much more hangs.
LIMITS = Limits(meta_seconds=90, tiny_seconds=120, memory=3 * GIB)


def safely(pair: Pair, worker: Worker, keep: Path | None) -> Row:
    """A row whatever happens: a failure of the tool itself stands in it and stops nothing."""
    try:
        return judge(pair, worker, LIMITS, keep / pair.name if keep is not None else None)
    except Exception as error:  # noqa: BLE001 - one row is not the census
        reason = f"lora-doctor itself failed: {type(error).__name__}: {error}"
        cells = {name: Cell("unknown", single_line(reason)) for name in COLUMNS}
        return Row(pair.auto_class, pair.model_type, cells=cells)
