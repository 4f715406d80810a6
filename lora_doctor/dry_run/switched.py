"""What an optimizer does to adapters that ``set_adapter`` had switched off when it was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lora_doctor.evidence.optimizer import OptimizerState, TrainableTensor
from lora_doctor.results.training_signal import AdapterGradients


def with_adapters(state: OptimizerState, adapters: Sequence[AdapterGradients]) -> OptimizerState:
    """The state with the weights of each adapter that took gradients in the steps; ``adapters``:
    those of a model that has several.

    An optimizer of one adapter may take its first step later than those that were read: what any
    optimizer holds counts as updated."""
    held = {name for one in adapters if one.held == len(one.tensors) for name in one.tensors}
    known = {item.name for item in state.tensors}
    more = [
        TrainableTensor(name, True, "updated" if one.held else "in no group", min(one.held, 1))
        for one in adapters
        if one.accumulated
        for name in one.tensors
        if name not in known
    ]
    names = {item.name for item in more}
    old = (
        replace(item, fate="updated") if item.fate == "in no group" and item.name in held else item
        for item in state.tensors
    )
    return replace(
        state,
        tensors=(*old, *more),
        frozen=tuple(name for name in state.frozen if name not in names),
    )
