"""Where a program uses all splits of a set together as if they were the rows of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.objects import is_none, is_trainer, top
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.value_types import type_of
from lora_doctor.static.installed.split_dictionaries import (
    SPLITS,
    STREAMED_SPLITS,
    splits_have,
    stays_splits,
)
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import AttributeRead, Call, Known, Thing, Unknown, Value

_LOADS = "datasets.load_dataset"
_CHAIN = 20


@dataclass(frozen=True)
class SplitsAsRows:
    """One such use."""

    #: ``DatasetDict``, or the class of a streamed set.
    kind: str
    #: What it does not have or is not taken for: ``train_test_split``, ``train_dataset``.
    name: str
    #: ``method`` that it lacks, ``argument`` of a trainer, the ``columns`` that are removed, or
    #: ``unpacked``.
    use: str
    #: Where it is used.
    place: Place
    #: Where it was loaded.
    loaded: Place


def splits_as_rows(setup: Setup) -> Iterator[SplitsAsRows]:
    """Each of them that surely runs; none where another release of datasets is pinned."""
    if "datasets" in pinned_otherwise(setup.program):
        return
    for read in setup.program.attribute_reads:
        if read.kind == "unpacked" and read.certain and not read.guarded:
            yield from _of_unpacking(read)
    for call in setup.program.calls:
        if call.certain and not call.guarded:
            yield from _of_receiver(call)
            if is_trainer(call) and top(call.name) in ("transformers", "trl"):
                yield from _of_trainer(call)


def _of_receiver(call: Call) -> Iterator[SplitsAsRows]:
    source = _source(call.receiver)
    if source is None:
        return
    kind = kind_of(source)
    if splits_have(kind, call.method) is False:
        yield SplitsAsRows(kind, call.method, "method", call.place, source.place)
    elif call.method == "map" and _names_its_splits(call):
        yield SplitsAsRows(kind, "remove_columns", "columns", call.place, source.place)


def _of_unpacking(read: AttributeRead) -> Iterator[SplitsAsRows]:
    """``train, test = rows.train_test_split(…)``: the names of the splits, as of any dictionary."""
    found = type_of(read.owner)
    if found is not None and found.name in (SPLITS, STREAMED_SPLITS) and found.made.certain:
        yield SplitsAsRows(found.name, "", "unpacked", read.span.place, found.made.place)


def _names_its_splits(call: Call) -> bool:
    """``raw.map(…, remove_columns=raw.column_names)``: a dictionary with the splits as its keys."""
    given = call.value("remove_columns")
    text = call.span.text.partition(".map")[0].strip()
    return isinstance(given, Unknown) and given.code == f"{text}.column_names"


def _of_trainer(call: Call) -> Iterator[SplitsAsRows]:
    source = _source(call.value("train_dataset"))
    if source is not None and call.heir is None:
        place = call.keywords["train_dataset"].span.place
        yield SplitsAsRows(kind_of(source), "train_dataset", "argument", place, source.place)


def kind_of(source: Call) -> str:
    """The class of what loads all splits."""
    streams = source.value("streaming")
    return STREAMED_SPLITS if isinstance(streams, Known) and streams.value else SPLITS


def _source(value: Value | None) -> Call | None:
    """The call that made all splits, behind methods that return all of them again."""
    for _ in range(_CHAIN):
        if not isinstance(value, Thing) or not value.call.certain:
            return None
        call = value.call
        if call.name == _LOADS:
            return call if _has_all(call) else None
        if not any(stays_splits(kind, call.method) for kind in (SPLITS, STREAMED_SPLITS)):
            return None
        value = call.receiver
    return None


def _has_all(call: Call) -> bool:
    """Whether no split is named; which ones there are, and whether it streams, has to be known."""
    streams = call.value("streaming")
    named = call.value("split", 3)
    plain = streams is None or isinstance(streams, Known)
    return call.open is None and plain and (named is None or is_none(named))
