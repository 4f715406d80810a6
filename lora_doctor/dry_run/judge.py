"""From what a dry run captured to the diagnosis: the same rules as ``check``, on its evidence."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_doctor.api.opening import open_case
from lora_doctor.api.options import CheckOptions
from lora_doctor.dry_run import command as commands
from lora_doctor.dry_run import launch
from lora_doctor.dry_run.acts.folders import remove_empty
from lora_doctor.dry_run.captured import MADE_UP, Captured, shapes
from lora_doctor.dry_run.not_asked import not_asked
from lora_doctor.dry_run.one_failure import FAILURE, one_failure
from lora_doctor.dry_run.open_question import is_ours, why_open
from lora_doctor.dry_run.origins import lines_in_files
from lora_doctor.dry_run.real_widths import has_real_widths
from lora_doctor.dry_run.several import by_size
from lora_doctor.dry_run.training_signal import REWARDS_ALIKE, signal_of
from lora_doctor.dry_run.written import keep_written
from lora_doctor.engine import registry
from lora_doctor.engine.case import Case
from lora_doctor.engine.diagnose import diagnose
from lora_doctor.engine.evidence_store import EvidenceStore
from lora_doctor.engine.ignored import with_ignored
from lora_doctor.engine.limits import DEFAULT_MEMORY
from lora_doctor.engine.rule import Rule
from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.guest.session import Session
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Diagnosis, Gathered
from lora_doctor.results.dry_run import NOT_SHOWN, DryRun
from lora_doctor.results.finding import Finding, Measurement
from lora_doctor.results.note import Note
from lora_doctor.sandbox.temporary import temporary_folder
from lora_doctor.static.model_source import ModelSource, parse_model
from lora_doctor.text import short_path

ACTS = ("lora_doctor.dry_run.acts:install",)
DEFAULT_SECONDS = 600.0


@dataclass(frozen=True)
class DryRunOptions:
    """``rows``: of each data set. ``synthetic_data``: rows are made up for a set that cannot be
    had. ``check_resume``: a Trainer is resumed from a checkpoint of the run. ``seconds``,
    ``memory``: limits of the whole command. The others as for ``check``."""

    rows: int = 64
    synthetic_data: bool = False
    check_resume: bool = False
    seconds: float = DEFAULT_SECONDS
    memory: int = DEFAULT_MEMORY
    check: CheckOptions = field(default_factory=CheckOptions)


def dry_run(
    words: Sequence[str],
    options: DryRunOptions,
    progress: Callable[[str], None] = lambda text: None,
    started: Callable[[Sequence[str]], None] = lambda words: None,
) -> Diagnosis:
    """Run the command with the model shrunk, and diagnose what it captured.

    ``started`` is told the words of the command before it runs.

    Raises:
        InputError: the command cannot be run, a guest cannot be in it, or the options select rules
            that are not there; nothing was run then.
    """
    began = time.perf_counter()
    command = commands.command_of(words)
    if any(options.check.get(key) for key in ("select", "ignore", "rules")):
        _rules(options.check)  # a slip there is told before the command has run for minutes
    run = _run_once(command, options, progress, started, widths=False)
    if has_real_widths(run.captured):
        progress("running the command again: its own code has the widths of the real model")
        run = _run_once(command, options, progress, started, widths=True)
    found = _Outcome.of(command.words, run.ended, run.captured, run.pythons)
    progress("asking the rules")
    diagnosis = _diagnose(run.captured, found, options, progress)
    return replace(diagnosis, seconds=time.perf_counter() - began)


@dataclass(frozen=True)
class _Run:
    """``pythons``: the interpreters of the command's processes that were seen."""

    ended: launch.Ended
    captured: Captured
    pythons: frozenset[str]


def _run_once(
    command: commands.Command,
    options: DryRunOptions,
    progress: Callable[[str], None],
    started: Callable[[Sequence[str]], None],
    *,
    widths: bool,
) -> _Run:
    """``widths``: small models keep the widths of the real ones."""
    with temporary_folder() as folder:
        asked = {
            "rows": options.rows,
            "synthetic_data": options.synthetic_data,
            "check_resume": options.check_resume,
            "widths": widths,
        }
        session = Session(Path(folder), os.urandom(16).hex(), ACTS, asked)
        session.write()
        environment = commands.with_programs(command, launch.environment_of(session, os.environ))
        progress("asking the interpreter of the command for its guest")
        commands.probe(command, session, environment)
        started(command.words)
        threading.Thread(target=_import_rules, daemon=True).start()  # while the command runs
        ended = launch.run(
            command,
            session,
            environment,
            seconds=options.seconds,
            memory_limit=options.memory,
            progress=progress,
        )
        captured = Captured.read(session.records)
        remove_empty(str(record["path"]) for record in captured.all("folder"))
        answers = [
            json.loads(one.read_text("utf-8"))
            for one in session.answers.iterdir()
            if one.name.isdigit()
        ]
        return _Run(ended, captured, frozenset(one["executable"] for one in answers))


def _import_rules() -> None:
    """Import the rules, so that they are there when they are asked for; what is wrong with one is
    told then."""
    with contextlib.suppress(InputError):
        registry.find_rules()


@dataclass(frozen=True)
class _Outcome:
    """``open``: why the question is open, or ``None``. ``output``: the end of what was written."""

    run: DryRun
    ended: launch.Ended
    open: str | None

    @classmethod
    def of(
        cls,
        words: Sequence[str],
        ended: launch.Ended,
        captured: Captured,
        pythons: frozenset[str],
    ) -> _Outcome:
        error = captured.error()
        reason = why_open(ended, captured, pythons, error)
        train = captured.last("train") or {}
        adapted = captured.last("adapted") or {}
        recipe = captured.recipe()
        return cls(
            DryRun(
                command=tuple(words),
                exit_code=0 if captured.all("ended") else ended.code,
                trained_by=str(train.get("by", "")),
                steps=captured.steps,
                planned_steps=train.get("planned"),
                rows=train.get("rows"),
                origins={**lines_in_files(words, recipe.values), **captured.origins(recipe)},
                ran=_really_ran(captured),
                inputs=shapes(adapted.get("inputs", {})),
                redirected=captured.redirected(),
                packed=captured.packed(),
                accumulated=captured.accumulated(),
                dropped_columns=captured.dropped_columns(),
                filtered=captured.filtered(),
                frozen=captured.frozen(),
                processes=captured.processes(),
                resumed=captured.resumed(),
                shifted_labels=captured.shifted_labels(),
                saved_with_adapters=captured.saved_with_adapters(),
                signal=signal_of(captured.records, short_path),
                error=None if error is not None and is_ours(error, captured) else error,
                seconds=ended.seconds,
            ),
            ended,
            reason,
        )


def _really_ran(captured: Captured) -> dict[str, str]:
    """What ran, whatever was asked for."""
    found: dict[str, str] = {}
    loading, train = captured.loading, captured.last("train")
    if loading is not None:
        found["dtype"] = str(loading["dtype"])
        found["attention"] = str(loading["attention"])
        found["quantized"] = str(loading["quantized"])
    for key in ("distributed", "world_size", "mixed_precision", "collator", "optimizer"):
        if train is not None and train.get(key) is not None:
            found[key] = str(train[key])
    return found


def _rules(given: CheckOptions) -> tuple[Sequence[type[Rule]], registry.RuleSelection]:
    """All rules, and which of them are asked.

    Raises:
        InputError: an option names no rule, or a folder with none.
    """
    rules = registry.find_rules(Path(folder) for folder in given.get("rules", ()))
    selection = registry.RuleSelection(
        tuple(given.get("select", ())), tuple(given.get("ignore", ()))
    )
    registry.check_selection(selection, rules)
    return rules, selection


def _diagnose(
    captured: Captured, found: _Outcome, options: DryRunOptions, progress: Callable[[str], None]
) -> Diagnosis:
    given = options.check
    rules, selection = _rules(given)
    recipe = captured.recipe()
    source = _source(captured)
    # Where the guest saw everything, no child has to import torch once more.
    case_options: CheckOptions = {"progress": progress, "budgets": given.get("budgets")}
    with open_case(source, recipe, case_options, eager=False) as case:
        _keep(case, captured, found, recipe)
        diagnosis = diagnose(case, rules, selection, strict=given.get("strict", False))
    placed = tuple(_with_place(one, found.run) for one in diagnosis.findings)
    findings = one_failure(replace(diagnosis, findings=placed), found.run.error, rules)
    notes = [*diagnosis.notes, *captured.notes(), *_downgrades(recipe, found.run)]
    if found.run.processes is not None:
        counted = by_size(captured.every, found.run.processes)
        notes += [Note("not-proven", counted)] if counted else []
    rewards = found.run.signal.rewards
    if rewards is not None and rewards.alike == rewards.prompts:
        notes.append(Note("not-proven", REWARDS_ALIKE))
    notes += [Note("not-proven", NOT_SHOWN), *not_asked(diagnosis.skipped)]
    diagnosis = replace(
        diagnosis,
        findings=findings,
        dry_run=found.run,
        undetermined=_undetermined(found, diagnosis),
        reached=diagnosis.reached,
        limit=found.ended.limit or diagnosis.limit,
        notes=tuple(dict.fromkeys(notes)),
    )
    return with_ignored(diagnosis, [rule.code for rule in rules], found.run.origins)


def _undetermined(found: _Outcome, diagnosis: Diagnosis) -> str | None:
    """Why the question is open; a command that failed has answered it, if anybody says so."""
    error = found.run.error
    if error is None:
        return found.open or diagnosis.undetermined
    if any(finding.rule == FAILURE for finding in diagnosis.findings):
        return None
    return f"the command fails: {error.type}: {error.message[:400]}"


def _downgrades(recipe: Recipe, run: DryRun) -> list[Note]:
    """What ran is another thing than what was asked for, and no library said so."""
    asked, ran = recipe.get("dtype"), run.ran.get("dtype")
    if asked in (None, "auto") or ran is None or ran == asked or recipe.quantized:
        return []
    return [Note("not-proven", f"dtype={asked} was requested, and {ran} ran")]


def _source(captured: Captured) -> ModelSource:
    """The model that the command loads; a module without a source where it makes its own, be it of
    a config."""
    loading, adapted = captured.loading, captured.last("adapted")
    if loading is not None and loading["name"]:
        try:
            return parse_model(
                loading["name"],
                revision=loading["revision"],
                trust_remote_code=loading["trust_remote_code"],
            )
        except InputError:
            pass  # a name that is none of ours: what was captured is all there is
    name = adapted["base_class"] if adapted is not None else "the command's model"
    return ModelSource("module", str(name))


def _keep(case: Case, captured: Captured, found: _Outcome, recipe: Recipe) -> None:
    """The evidence of the dry run in its places; what it could not have is not made up."""
    store = case.store
    store.keep("dry_run", found.run)
    words = " ".join(found.run.command)
    store.gathered.append(Gathered("dry_run", words[:300], round(found.run.seconds, 3)))
    keep_written(store, found.run.command)
    verification, optimizer = captured.verification(), captured.optimizer()
    reason = found.open or "the command failed before a model with adapters was trained"
    if verification is not None:
        store.keep("tiny", verification)
    elif _own(case) or captured.adapter is None:
        store.refuse("tiny", EvidenceError(reason))
    names = captured.names()
    # A hub tells a header that is not in the cache: better than what the class alone says.
    if names is not None and not (names.saved_class and case.source.kind == "hub"):
        store.keep("loading", names)
    elif _own(case):
        store.refuse("loading", EvidenceError("no checkpoint was loaded"))
    if optimizer is not None:
        store.keep("optimizer", optimizer)
    else:
        store.refuse("optimizer", EvidenceError("no optimizer took a step in the dry run"))
    _keep_supervision(store, captured, found)
    record = captured.last("structure")
    structure = captured.structure()
    if structure is not None and record is not None and (record["full"] or _own(case)):
        store.keep("structure", structure)
    elif _own(case):
        store.refuse("structure", EvidenceError(reason))


def _keep_supervision(store: EvidenceStore, captured: Captured, found: _Outcome) -> None:
    supervision = captured.supervision()
    if captured.all("synthetic"):
        store.refuse("supervision", EvidenceError(MADE_UP))
    elif found.run.shifted_labels is not None:
        store.refuse("supervision", EvidenceError("the labels are not those of their tokens"))
    elif supervision is not None:
        store.keep("supervision", supervision)
    else:
        store.refuse("supervision", EvidenceError("no batch with labels was seen in the dry run"))


def _own(case: Case) -> bool:
    """Whether the command makes its model by itself: nobody else can build it."""
    return case.source.kind == "module"


def _with_place(finding: Finding, run: DryRun) -> Finding:
    """The finding with the lines that set its keys."""
    keys = [finding.location.path] if finding.location.kind == "recipe" else []
    keys += [edit.key for fix in finding.fixes for edit in fix.edits]
    places = [
        Measurement(f"{key} is set", run.origins[key], "captured in the dry run")
        for key in dict.fromkeys(keys)
        if key in run.origins
    ]
    return replace(finding, evidence=(*finding.evidence, *places))
