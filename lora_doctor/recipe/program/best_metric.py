"""The metric by which a trainer chooses its best checkpoint, and what its evaluation computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_doctor.recipe.program.evaluation import (
    asked_strategy,
    is_of_a_library,
    makes_itself,
)
from lora_doctor.recipe.program.objects import Settings, is_none, is_trainer, settings_of, top
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Function, Items, Known, Thing, Value
from lora_doctor.static.program.values import Mapping as Entries

if TYPE_CHECKING:
    import libcst as cst

#: Positions of arguments of transformers' ``Trainer``, whose order is the same in every release.
_EVAL_DATASET = 4
#: What every evaluation of a ``Trainer`` computes, without ``eval_``.
_ALWAYS = ("loss", "runtime", "samples_per_second", "steps_per_second",
           "model_preparation_time", "jit_compilation_time")  # fmt: skip
#: Trainers that add no metrics of their own.
_PLAIN = ("Trainer", "Seq2SeqTrainer")
_STOPS = "EarlyStoppingCallback"


@dataclass(frozen=True)
class MetricNotComputed:
    """A metric that the trainer asks for after each evaluation, and that none computes."""

    trainer: str
    trainer_place: Place
    #: As the trainer looks it up; empty where a callback needs one and none is set.
    metric: str
    #: Names that the evaluation is known to compute, with ``eval_``.
    computed: tuple[str, ...]
    #: What says so, and where it stands.
    source: str
    place: Place


def metrics_not_computed(setup: Setup) -> Iterator[MetricNotComputed]:
    """Trainers of the libraries whose best checkpoint would be chosen by such a metric."""
    for call in setup.program.calls:
        if not _is_known(call) or not call.certain or call.open is not None:
            continue
        arguments = settings_of(call.value("args", 1))
        if arguments is None or arguments.open is not None or not asked_strategy(arguments):
            continue
        found = _stopped_early(call, arguments)
        if found is None and not _may_add_metrics(setup, call):
            found = _not_computed(call, arguments)
        if found is not None:
            yield found


def _is_known(call: Call) -> bool:
    """Trainers of transformers and TRL; that of sentence-transformers unless it has an evaluator,
    whose metrics have names of their own."""
    if top(call.name) != "sentence_transformers":
        return is_of_a_library(call)
    return is_trainer(call) and makes_itself(call) and is_none(call.value("evaluator"))


def _metric(arguments: Settings) -> str | None:
    """The metric without ``eval_``; ``None`` where none is looked up, or it is not known."""
    given = arguments.value("metric_for_best_model")
    if isinstance(given, Known) and isinstance(given.value, str):
        return given.value.removeprefix("eval_")
    best = arguments.value("load_best_model_at_end")
    is_best = isinstance(best, Known) and best.value is True
    return "loss" if is_best and is_none(given) else None


def _not_computed(call: Call, arguments: Settings) -> MetricNotComputed | None:
    metric = _metric(arguments)
    if metric is None:
        return None
    sets = call.value("eval_dataset", _EVAL_DATASET)
    if isinstance(sets, Entries):
        # Each set has its name before its metrics; a set called "a_b" has those of "a" as well.
        if sets.open is not None or any(metric.startswith(f"{name}_") for name in sets.entries):
            return None
        computed = tuple(f"eval_{name}_loss" for name in sets.entries)
        return _found(call, metric, computed, "eval_dataset has several sets", call.place)
    given = call.value("compute_metrics")
    if top(call.name) != "transformers" or call.method not in _PLAIN or len(call.positional) > 5:
        return None
    if is_none(given):
        names: tuple[str, ...] | None = ()
        source, place = "compute_metrics is not given", call.place
    else:
        names, source = _returned(given), "the function returns these names"
        place = call.place
    known = [name.removeprefix("eval_") for name in (*_ALWAYS, *(names or ()))]
    # That of one of several sets, whose names are not seen here.
    of_set = any(metric.endswith(f"_{name}") for name in known)
    if names is None or metric in known or of_set:
        return None
    shown = [f"eval_{name.removeprefix('eval_')}" for name in ("loss", *names)]
    return _found(call, metric, tuple(dict.fromkeys(shown)), source, place)


def _stopped_early(call: Call, arguments: Settings) -> MetricNotComputed | None:
    """A callback of the library that ends the run before its first step without a metric."""
    stops = _callback(call.value("callbacks"))
    scheduled = arguments.value("lr_scheduler_type")
    by_metric = isinstance(scheduled, Known) and scheduled.value == "reduce_lr_on_plateau"
    best = arguments.value("load_best_model_at_end")
    off = is_none(best) or (isinstance(best, Known) and best.value is False)
    if stops is None or by_metric or not off or not is_none(
        arguments.value("metric_for_best_model")
    ):  # fmt: skip
        return None
    return _found(call, "", (), f"{_STOPS} needs metric_for_best_model", stops.place)


def _may_add_metrics(setup: Setup, call: Call) -> bool:
    """Whether code of the user's own may change what an evaluation returns: a callback gets the
    metrics, and attributes of the trainer can be set."""
    given = [call.value("callbacks")]
    for other in setup.program.calls:
        own = isinstance(other.receiver, Thing) and other.receiver.call is call
        if own and other.method == "add_callback":
            given.append(other.value("callback", 0))
    made = call.result
    return not all(map(_is_of_transformers, given)) or (
        isinstance(made, Thing) and bool(made.attributes)
    )


def _is_of_transformers(callback: Value | None) -> bool:
    if isinstance(callback, Items):
        return callback.open is None and all(map(_is_of_transformers, callback.items))
    return is_none(callback) or (
        isinstance(callback, Thing)
        and top(callback.made_by) == "transformers"
        and makes_itself(callback.call)
    )


def _callback(value: Value | None) -> Call | None:
    for one in value.items if isinstance(value, Items) else ():
        if isinstance(one, Thing) and one.made_by.rpartition(".")[2] == _STOPS:
            return one.call if top(one.made_by) == "transformers" else None
    return None


def _found(
    call: Call, metric: str, computed: tuple[str, ...], source: str, place: Place
) -> MetricNotComputed:
    name = metric and f"eval_{metric}"
    return MetricNotComputed(call.method, call.place, name, computed, source, place)


def _returned(value: Value | None) -> tuple[str, ...] | None:
    """The keys that a function of the user's returns, where each ``return`` writes them out."""
    import libcst as cst

    if not isinstance(value, Function):
        return None
    if isinstance(value.node, cst.Lambda):
        return _keys(value.node.body)
    names: list[str] = []
    returns = _returns(value.node)
    for one in returns:
        keys = None if one is None else _keys(one)
        if keys is None:
            return None
        names += keys
    return tuple(names) if returns else None


def _returns(node: cst.FunctionDef) -> list[cst.BaseExpression | None]:
    """What stands behind each ``return`` of a function, without those of functions inside."""
    import libcst as cst

    found: list[cst.BaseExpression | None] = []
    todo: list[cst.CSTNode] = list(node.body.children)
    while todo:
        one = todo.pop()
        if isinstance(one, cst.Return):
            found.append(one.value)
        elif not isinstance(one, (cst.FunctionDef, cst.ClassDef, cst.Lambda)):
            todo += one.children
    return found


def _keys(node: cst.BaseExpression) -> tuple[str, ...] | None:
    import libcst as cst

    if not isinstance(node, cst.Dict):
        return None
    keys = []
    for element in node.elements:
        key = element.key if isinstance(element, cst.DictElement) else None
        if not isinstance(key, cst.SimpleString):
            return None
        keys.append(str(key.evaluated_value))
    return tuple(keys)
