"""How a program's trainer gets its rows: labels that include padding, and an evaluation set that is
trained on."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.code_of import code_of
from lora_doctor.recipe.program.evaluation import asked_strategy, is_of_a_library
from lora_doctor.recipe.program.objects import is_none, is_one_split, settings_of, text_of, top
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.installed.signatures import signature_of
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import (
    Call,
    Function,
    Instance,
    Reference,
    Thing,
    Unknown,
    Value,
    same,
)
from lora_doctor.static.script.decoded_labels import DecodedLabels, decoded_labels
from lora_doctor.static.script.padded_labels import PaddedLabels, padded_labels

#: Methods of a set after which it has the same rows, whatever is in them.
_SAME_ROWS = frozenset(
    {"map", "shuffle", "rename_column", "rename_columns", "remove_columns", "select_columns",
     "with_format", "cast", "cast_column", "flatten_indices", "add_column", "with_transform"}
)  # fmt: skip
_ALL_OF_THEM = ("select", "take")
_KEEPS_LABELS = ("default_data_collator", "DefaultDataCollator", "DataCollatorWithPadding",
                 "DataCollatorForSeq2Seq")  # fmt: skip
_STEPS = 50
#: By which a collator that pads labels lets another id be chosen than -100.
_PADS_LABELS = "label_pad_token_id"
#: Positions of ``load_dataset`` before that of ``split``.
_BEFORE_SPLIT = 5
_SLICE = re.compile(
    r"(?P<name>\w+)(?P<slice>\[(?:(?P<low>\d+)(?P<of_low>%?))?:(?:(?P<high>\d+)(?P<of_high>%?))?\])?"
)


@dataclass(frozen=True)
class TrainedOn:
    """An evaluation set whose rows are trained on."""

    #: The class of the trainer.
    trainer: str
    #: Where it gets the set.
    place: Place
    #: What stands there.
    evaluated: str
    #: What is trained on.
    trained: str


def evaluated_on_trained(setup: Setup) -> Iterator[TrainedOn]:
    """Trainers that evaluate on the training set, or on a part that was selected of it."""
    for call in setup.program.calls:
        if not is_of_a_library(call) or not call.certain or call.open is not None:
            continue
        trained, evaluated = call.argument("train_dataset", 3), call.argument("eval_dataset", 4)
        settings = settings_of(call.value("args", 1))
        if trained is None or evaluated is None or settings is None or settings.open is not None:
            continue
        if top(call.name) != "transformers" and call.positional[3:]:
            continue
        if asked_strategy(settings) and _is_of(evaluated.value, trained.value):
            place = evaluated.whole.place
            texts = (evaluated.span.text, trained.span.text)
            yield TrainedOn(call.method, place, *(" ".join(one.split())[:80] for one in texts))


def _is_of(evaluated: Value, trained: Value) -> bool:
    """Whether all rows of one set were selected of the other, or the text is the same."""
    if isinstance(evaluated, Unknown) and isinstance(trained, Unknown):
        return is_one_split(evaluated, trained)
    inner, outer = list(_steps(evaluated)), list(_steps(trained))
    if not isinstance(evaluated, Thing) or not isinstance(trained, Thing) or not outer:
        return False
    loaded_again = len(outer) == 1 and bool(inner) and _loads_part(inner[0], outer[0])
    if not loaded_again and inner[: len(outer)] != outer:
        return False
    return all(call.method in _ALL_OF_THEM for call in inner[len(outer) :])


def _loads_part(inner: Call, outer: Call) -> bool:
    """Whether one call loads rows that the other one loads too: ``split="train[:5%]"`` of the split
    that is trained on."""
    if {inner.method, outer.method} != {"load_dataset"} or top(inner.name) != "datasets":
        return False
    if inner.open is not None or outer.open is not None or len(inner.positional) > _BEFORE_SPLIT:
        return False
    names = {*inner.keywords, *outer.keywords} - {"split"}
    pairs = [(inner.value(name), outer.value(name)) for name in names]
    places = range(max(len(inner.positional), len(outer.positional)))
    pairs += [(inner.value("", place), outer.value("", place)) for place in places]
    if not all(itertools.starmap(_alike, pairs)):
        return False
    part, whole = text_of(inner.value("split")), text_of(outer.value("split"))
    return part is not None and whole is not None and _is_within(part, whole)


def _alike(one: Value | None, other: Value | None) -> bool:
    """Whether two arguments are given and known to be the same."""
    if one is None or other is None:
        return False
    return same(one, other) or (
        isinstance(one, Unknown) and isinstance(other, Unknown)
        and one.code == other.code and one.code.isidentifier()
    )  # fmt: skip


def _is_within(part: str, whole: str) -> bool:
    """Whether ``train[:5%]`` is a part of ``train`` or of ``train[:90%]``; bounds of other units,
    or counted from the end, are not compared."""
    if part == whole:
        return True
    found, of = _SLICE.fullmatch(part), _SLICE.fullmatch(whole)
    if found is None or of is None or found["name"] != of["name"]:
        return False
    if of["slice"] is None:
        return True
    units = {one[name] for one in (found, of) for name in ("of_low", "of_high")} - {None}
    if found["slice"] is None or len(units) > 1:
        return False
    (low, high), (first, last) = _bounds(found), _bounds(of)
    return first <= low and high <= last


def _bounds(found: re.Match[str]) -> tuple[float, float]:
    return float(found["low"] or 0), float(found["high"] or "inf")


def _steps(value: Value | None) -> Iterator[Call]:
    """The calls that decide which rows a set has, from the one that made it."""
    calls: list[Call] = []
    while isinstance(value, Thing) and len(calls) < _STEPS:
        calls.append(value.call)
        value = value.call.receiver
    for call in reversed(calls):
        if call.receiver is None or call.method not in _SAME_ROWS:
            yield call


def labels_with_padding(setup: Setup) -> Iterator[tuple[Place, PaddedLabels]]:
    """Labels that a function of ``map``, or the ``__getitem__`` of a class of the program's, copies
    from padded ids, for a Trainer whose collator keeps them."""
    for call in setup.program.calls:
        if not is_of_a_library(call) or top(call.name) != "transformers" or not call.certain:
            continue
        if call.open is not None or not _keeps_labels(call.value("data_collator", 2)):
            continue
        rows = call.value("train_dataset", 3)
        for function in (*_mapped(rows), *_rows_made(rows)):
            code = code_of(function)
            found = padded_labels(code) if code is not None else None
            if found is not None:
                start = function.unit.span(function.node).start
                yield function.unit.place_at(start), found


def labels_decoded(setup: Setup) -> Iterator[tuple[Place, DecodedLabels]]:
    """Metrics that decode the labels with the -100 by which the trainer's collator pads them."""
    for call in setup.program.calls:
        if not is_of_a_library(call) or top(call.name) != "transformers" or not call.certain:
            continue
        metric = call.value("compute_metrics")
        if call.open is not None or not isinstance(metric, Function):
            continue
        if is_none(call.value("eval_dataset", 4)) or not _pads_with_ignored(call):
            continue
        code = code_of(metric)
        found = decoded_labels(code) if isinstance(code, ast.FunctionDef) else None
        if found is not None:
            yield metric.unit.place_at(metric.unit.span(metric.node).start), found


def _pads_with_ignored(call: Call) -> bool:
    """Whether the collator is the library's, and pads labels by its default, which is -100."""
    collator = call.value("data_collator", 2)
    if not isinstance(collator, Thing) or top(collator.call.name) != "transformers":
        return False
    made = collator.call
    signature = signature_of(made.name)
    if signature is None or _PADS_LABELS not in signature.names:
        return False
    return made.heir is None and made.open is None and _PADS_LABELS not in made.keywords


def _keeps_labels(collator: Value | None) -> bool:
    if is_none(collator):
        return True
    name = collator.name if isinstance(collator, Reference) else (
        collator.call.name if isinstance(collator, Thing) else ""
    )  # fmt: skip
    return top(name) == "transformers" and name.rpartition(".")[2] in _KEEPS_LABELS


def _rows_made(value: Value | None) -> Iterator[Function]:
    """The method that makes a row of a set of a class of the program's own."""
    own = value.of if isinstance(value, Instance) else None
    if isinstance(value, Thing):
        own = value.call.heir
    method = own.names.get("__getitem__") if own is not None else None
    if isinstance(method, Function):
        yield method


def _mapped(value: Value | None) -> Iterator[Function]:
    """The functions that the rows of a set went through; none where a later one is not known."""
    for _ in range(_STEPS):
        if not isinstance(value, Thing) or value.call.receiver is None:
            return
        if value.call.method == "map":
            function = value.call.value("function", 0)
            if isinstance(function, Function):
                yield function
            return
        value = value.call.receiver
