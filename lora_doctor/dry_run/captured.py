"""What the guests of a session told, put together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from lora_doctor.dry_run.recipe import captured_recipe
from lora_doctor.dry_run.sampled import judged_batches
from lora_doctor.dry_run.several import is_of_another, of_first_rank, processes_of
from lora_doctor.dry_run.switched import with_adapters
from lora_doctor.dry_run.training_signal import adapters_of
from lora_doctor.evidence.optimizer import OptimizerState
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.dry_run import (
    AccumulatedLoss,
    DroppedColumns,
    FilteredRows,
    FrozenAdapters,
    PackedSamples,
    Resumed,
    SavedWithAdapters,
    ScriptError,
    ShiftedLabels,
)
from lora_doctor.results.from_json import from_json
from lora_doctor.results.loading import Loading
from lora_doctor.results.note import Note, NoteKind
from lora_doctor.results.processes import Processes
from lora_doctor.results.structure import Structure
from lora_doctor.results.supervision import (
    EvaluationSet,
    Supervision,
    TokenizerFacts,
    TrainingPlan,
)
from lora_doctor.results.verification import Verification
from lora_doctor.supervision.batches import observe_batches
from lora_doctor.text import short_path

T = TypeVar("T")
#: Bytes of records that are read of one process.
_MOST_BYTES = 64 << 20
#: Launchers raise this when what they started has failed: that one has told why.
_OF_LAUNCHERS = ("CalledProcessError", "ChildFailedError", "CellExecutionError", "SystemExit")
#: Classes whose labels are those of the tokens themselves, by transformers' names.
_NOT_SHIFTED = ("TokenClassification", "MaskedLM", "QuestionAnswering")
#: What torch raises for an optimizer that is made of no parameters, before any forward.
_NO_PARAMETERS = "optimizer got an empty parameter list"
#: Why nothing is said of labels where a set was not to be had.
MADE_UP = "the rows were made up: their texts, lengths and labels prove nothing"
_NOTES: Mapping[str, NoteKind] = {"not-proven": "not-proven", "ended": "not-proven"}


@dataclass(frozen=True)
class Captured:
    """The records, oldest first. ``records``: of processes that train together, what the first one
    told stands for all of them. ``every``: those of all."""

    records: tuple[Mapping[str, Any], ...]
    every: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Captured:
        """The records in a folder; half a line of a process that was killed is passed over."""
        found: list[Mapping[str, Any]] = []
        for path in sorted(folder.glob("*.jsonl")):
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file.read(_MOST_BYTES).splitlines():
                    try:
                        record = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(record, dict) and "kind" in record:
                        found.append(record)
        found.sort(key=lambda record: float(record.get("time", 0)))
        return cls(tuple(of_first_rank(found)), tuple(found))

    def all(self, kind: str) -> list[Mapping[str, Any]]:
        """The records of a kind."""
        return [record for record in self.records if record["kind"] == kind]

    def last(self, kind: str) -> Mapping[str, Any] | None:
        """The newest record of a kind."""
        return next(iter(reversed(self.all(kind))), None)

    @property
    def loading(self) -> Mapping[str, Any] | None:
        """The loading of the model that trains; without adapters, of the last one."""
        models = self.all("model")
        adapted = self.last("adapted")
        if adapted is not None:
            # Another model may have got the place of one that is gone: the one before counts.
            models = [
                one
                for one in models
                if (one["pid"], one["object"]) == (adapted["pid"], adapted["object"])
                and one["time"] <= adapted["time"]
            ]
        return models[-1] if models else None

    @property
    def adapter(self) -> Mapping[str, Any] | None:
        """The adapter's config: of the model that trained, else the last that was made."""
        return self.last("adapted") or self.last("config")

    @property
    def steps(self) -> int:
        """Optimizer steps that were taken, by the process that took most."""
        taken: Counter[int] = Counter()
        for record in self.all("trained"):
            taken[record["pid"]] += int(record["steps"])
        return max(taken.values(), default=0)

    def recipe(self) -> Recipe:
        """The recipe as it was captured.

        Raises:
            InputError: a value is none that its key can have.
        """
        adapter, arguments = self.adapter, self.last("arguments")
        return captured_recipe(
            adapter["adapter"] if adapter else None,
            self.loading,
            arguments["values"] if arguments else None,
        )

    def origins(self, recipe: Recipe) -> dict[str, str]:
        """Key of the recipe to where it was set."""
        found: dict[str, str] = {}
        adapter, loading, arguments = self.adapter, self.loading, self.last("arguments")
        for key in recipe.values:
            if adapter is not None and key in adapter["adapter"]:
                given = adapter.get("given")  # nobody knows it of a config that was read from files
                found[key] = _where(adapter) if given is None or key in given else ""
            elif arguments is not None and key in arguments["values"]:
                on_line = key in arguments.get("command_line", ())
                found[key] = "command line" if on_line else _where(arguments)
            elif loading is not None:
                found[key] = _where(loading)
        return {key: place for key, place in found.items() if place}

    def error(self) -> ScriptError | None:
        """What ended the user's code: the first exception that is no launcher's."""
        errors = self.all("error")
        own = [one for one in errors if not str(one["type"]).endswith(_OF_LAUNCHERS)]
        own = own or self._refused_arguments()
        # What only says that another process is gone, another process has the reason for.
        for record in [one for one in own if not is_of_another(one)] or own or errors:
            if record.get("exit_code") in (0, None) and str(record["type"]) == "SystemExit":
                continue
            place = record["own"][-1] if record["own"] else None
            deepest = record.get("deepest")
            return ScriptError(
                str(record["type"]),
                str(record["message"]),
                file=short_path(place["file"]) if place else "",
                line=int(place["line"]) if place else 0,
                raised_in=_place(deepest),
                traceback=str(record["traceback"]),
                steps=int(record["steps"]),
            )
        return None

    def _refused_arguments(self) -> list[Mapping[str, Any]]:
        """Command lines that a parser has refused, in processes that did nothing more."""
        latest = {one["pid"]: one for one in self.every if one["kind"] != "exit"}
        return [one for one in self.all("refused_arguments") if latest.get(one["pid"]) is one]

    def notes(self) -> list[Note]:
        """What was otherwise than in the real run, each once."""
        found: dict[str, Note] = {}
        for record in self.all("note"):
            kind = _NOTES.get(str(record["note"]), "step")
            place = _place(record.get("place"))
            text = f"{record['text']}{f' ({place})' if place and kind != 'step' else ''}"
            found[text] = Note(kind, text)
        for record in self.all("synthetic"):
            place = _place(record.get("place"))
            text = (
                f"data set {record['name']}{f' ({place})' if place else ''} cannot be had "
                f"({record['reason'][:200]}); {MADE_UP}"
            )
            found[text] = Note("not-proven", " ".join(text.split()))
        for record in self.all("ended"):
            text = f"not run: {record['why']}"
            found[text] = Note("not-proven", text)
        return list(found.values())

    def estimated(self) -> str | None:
        """Which length of a set is an estimate, so that step counts are; ``None``: none is."""
        for record in self.all("note"):
            if record["note"] == "estimated":
                place = _place(record.get("place"))
                return (
                    f"the length of a data set{f' at {place}' if place else ''} is an estimate, "
                    f"and with it the number of steps: {record['text']}; --rows with the number of "
                    "its rows makes it exact"
                )
        return None

    def verification(self) -> Verification | None:
        """The training contract on the user's own objects."""
        record = self.last("contract")
        return None if record is None else Verification.from_json(record["verification"])

    def structure(self) -> Structure | None:
        """The small model with its adapters."""
        record = self.last("structure")
        return None if record is None else Structure.from_json(record["structure"])

    def frozen(self) -> FrozenAdapters | None:
        """Adapters of which none is trainable in a model that goes to train."""
        if self.last("adapted") is not None:
            return None  # one that trains; this is its teacher or reference
        record = self.last("frozen")
        if record is None and any(_NO_PARAMETERS in one["message"] for one in self.all("error")):
            record = self.last("loaded_frozen")
        if record is None:
            return None
        place = record.get("place") or {"file": "", "line": 0}
        return FrozenAdapters(
            int(record["tensors"]),
            str(record["adapter"]),
            short_path(place["file"]) if place["file"] else "",
            int(place["line"]),
        )

    def names(self) -> Loading | None:
        """What the checkpoint lacks of the class that was loaded."""
        record = self.last("loading")
        return None if record is None else from_json(Loading, record["loading"])

    def optimizer(self) -> OptimizerState | None:
        """What the optimizer held, and what it does to adapters that were switched off when it was
        read; with its schedule, unless the script came to its end without a step of its
        scheduler."""
        state = self._optimizer()
        return None if state is None else with_adapters(state, adapters_of(self.records))

    def _optimizer(self) -> OptimizerState | None:
        record = self.last("optimizer")
        standing = self.last("optimizer_unscheduled")
        cut_short = self.all("ended") or self.all("error")
        if standing is not None and not cut_short:
            stepped = {one["of"] for one in self.all("scheduler_stepped")}
            if standing["of"] not in stepped:
                state = from_json(OptimizerState, standing["state"])
                return replace(state, notes=(*state.notes, "no step of the scheduler was taken"))
        return None if record is None else from_json(OptimizerState, record["state"])

    def rows(self) -> list[Mapping[str, Any]]:
        """Token ids of the first batches: lists of lists by the names of forward's arguments."""
        return [record["rows"] for record in self.all("rows")]

    def supervision(self) -> Supervision | None:
        """Which tokens of the first batches the loss sees; ``None`` where none had labels."""
        sampled = [record["rows"] for record in self.all("sampled_rows")]
        loaded = [record["rows"] for record in self.all("loaded_rows")]
        batches, origin = judged_batches(self.rows(), sampled, loaded)
        facts, adapted = self.last("tokenizer_facts"), self.last("adapted") or {}
        head = str(adapted.get("base_class", ""))
        counts = [record.get("label_count") for record in self.all("rows")]
        found = observe_batches(
            batches,
            TokenizerFacts() if facts is None else from_json(TokenizerFacts, facts["facts"]),
            origin=origin,
            causal=not any(name in head for name in _NOT_SHIFTED),
            rows_total=(self.last("train") or {}).get("rows"),
            label_count=adapted.get("label_count", next(iter(counts), None)),
        )
        if found is None:
            return None
        sets = self.last("sets") or {}
        plan, held = sets.get("plan"), sets.get("evaluation")
        return replace(
            found,
            plan=None if plan is None else from_json(TrainingPlan, plan),
            evaluation=None if held is None else from_json(EvaluationSet, held),
            asked_without_effect=self._no_effect(found),
        )

    def _no_effect(self, found: Supervision) -> str:
        """Whether TRL was asked for the loss on completions, and takes it on everything."""
        arguments = self.last("arguments") or {}
        asked = arguments.get("values", {}).get("completion_only_loss") is True
        if not asked or not found.judged or found.everything.count < found.judged:
            return ""
        return "completion_only_loss: the rows have no completion of their own"

    def processes(self) -> Processes | None:
        """The processes that train together; ``None`` where one was asked for, and one ran."""
        return processes_of(self.every, short_path)

    def packed(self) -> PackedSamples | None:
        """A line of several samples, where the model could be asked."""
        return self._one(PackedSamples, "packed", "change")

    def accumulated(self) -> AccumulatedLoss | None:
        """The first step of a trainer that accumulates a loss of the user's own."""
        found = self._one(AccumulatedLoss, "accumulation", "given")
        place = (self.last("accumulation") or {}).get("place") or {}
        if found is None or not place:
            return found
        return replace(found, file=short_path(place["file"]), line=int(place["line"]))

    def resumed(self) -> Resumed | None:
        """The last step, from a checkpoint of the run: in the process where it differs most, as
        each of several may hold a part of the weights."""
        found = [_resumed(record) for record in self.all("resumed")]
        return max(found, key=_difference, default=None)

    def shifted_labels(self) -> ShiftedLabels | None:
        """Labels that the model's loss shifts once more."""
        return self._one(ShiftedLabels, "shifted_labels", "loss")

    def saved_with_adapters(self) -> SavedWithAdapters | None:
        """The last model that was saved with PEFT's layers in it."""
        record = self.last("saved_with_adapters")
        if record is None:
            return None
        place = record.get("place") or {"file": "", "line": 0}
        return SavedWithAdapters(
            short_path(record["path"]),
            str(record["model_class"]),
            int(record["weights"]),
            tuple(record["names"]),
            adapter_too=bool(self.all("adapter_saved")),
            file=short_path(place["file"]) if place["file"] else "",
            line=int(place["line"]),
        )

    def dropped_columns(self) -> DroppedColumns | None:
        """Columns that trainers took out."""
        records = self.all("dropped_columns")
        names = dict.fromkeys(name for one in records for name in one["names"])
        needed = {name: kind for one in records for name, kind in one["needed"].items()}
        return DroppedColumns(tuple(names), needed) if names else None

    def filtered(self) -> tuple[FilteredRows, ...]:
        """Rows that libraries took out."""
        return tuple(
            FilteredRows(str(one["by"]), int(one["before"]), int(one["after"]))
            for one in self.all("filtered")
            if one["after"] < one["before"]
        )

    def _one(self, kind: type[T], name: str, needed: str) -> T | None:
        record = self.last(name)
        if record is None or needed not in record:
            return None
        own = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        return from_json(kind, {key: item for key, item in record.items() if key in own})

    def redirected(self) -> tuple[str, ...]:
        """Paths that were written elsewhere, each once."""
        return tuple(dict.fromkeys(str(record["path"]) for record in self.all("redirected")))


def _where(record: Mapping[str, Any]) -> str:
    return _place(record.get("place"))


def _place(place: Mapping[str, Any] | None) -> str:
    return f"{short_path(place['file'])}:{place['line']}" if place else ""


def shapes(inputs: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Shapes as tuples."""
    return {name: tuple(shape) for name, shape in inputs.items()}


def _resumed(record: Mapping[str, Any]) -> Resumed:
    own = {field.name for field in fields(Resumed)}
    found = from_json(Resumed, {key: item for key, item in record.items() if key in own})
    place = record.get("place")
    if not place:
        return found
    return replace(found, file=short_path(place["file"]), line=int(place["line"]))


def _difference(found: Resumed) -> tuple[bool, float, float]:
    return bool(found.error), found.apart - 0.05 * found.moved, abs(found.loss - found.resumed_loss)
