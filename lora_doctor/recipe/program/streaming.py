"""Trainers of a program that get a stream, which has no length, and no number of steps."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.recipe.program.evaluation import is_of_a_library
from lora_doctor.recipe.program.objects import is_none, settings_of, top
from lora_doctor.recipe.program.order import Slip, slip
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.program.values import Call, Known, Thing, Value

_POSITION = 3
#: What has no length either; all else of a dataset may.
_STILL_STREAMED = ("map", "filter", "shuffle", "skip", "take", "rename_column", "remove_columns",
                   "select_columns", "with_format", "cast_column")  # fmt: skip


def streamed_without_steps(setup: Setup) -> Iterator[Slip]:
    """The trainers, each with the call that streams."""
    for call in setup.program.calls:
        if not is_of_a_library(call) or not call.certain or call.open is not None:
            continue
        if top(call.name) == "trl" and call.positional[1:]:
            continue
        stream = _stream(call.value("train_dataset", _POSITION))
        if stream is not None and _has_no_steps(call.value("args", 1)):
            yield slip(call, stream, [])


def _has_no_steps(args: Value | None) -> bool:
    if is_none(args):
        return True
    settings = settings_of(args)
    if settings is None or settings.open is not None:
        return False
    steps = settings.value("max_steps")
    return steps is None or (isinstance(steps, Known) and steps.value in (-1, 0, None))


def _stream(value: Value | None) -> Call | None:
    """The ``load_dataset(..., streaming=True)`` that made a value."""
    for _ in range(20):
        if not isinstance(value, Thing):
            return None
        call = value.call
        if call.name == "datasets.load_dataset":
            streams = call.value("streaming")
            known = isinstance(streams, Known) and streams.value is True
            return call if known and call.certain else None
        if call.method not in _STILL_STREAMED:
            return None
        value = call.receiver
    return None
