"""What the training contract is run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_doctor.results.note import Note


@dataclass
class Subject:
    """What the contract is run on.

    ``base``: the model without adapters, or with them when ``wrap`` is ``None``; it is changed.
    ``wrap``: puts the adapters on. ``set_up``: what a trainer does before the first step (gradient
    checkpointing). ``fresh``: a base of equal weights to reload onto. ``copyable``: whether
    memory allows a copy of the whole model. ``user_weights``: these are the weights that the user
    trains from; ``user_inputs``: the batches are the user's too. ``shared``: the frozen ones belong
    to somebody else; nothing may be written to them. ``batches``: of ``tiny_model.batch.Batch``, on
    the device. ``missing``: kinds of input that the model takes and that no batch has. ``unfit``:
    keys of the recipe that may name layers which this model is too small to have. ``round_trip``:
    whether the adapters are also saved, reloaded and merged. ``observed``: whether anybody asks
    what observers see. ``missing_weights``: parameters that the checkpoint lacks, and whether
    loading draws them anew; ``fresh`` then has others. ``continued``: ``wrap`` puts on adapters
    that were trained before.
    """

    base: Any
    batches: list[Any]
    wrap: Callable[[Any], Any] | None
    fresh: Callable[[], Any]
    set_up: Callable[[Any], None] = lambda model: None
    learning_rate: float = 1e-2
    copyable: bool = True
    user_weights: bool = False
    user_inputs: bool = False
    shared: bool = False
    missing: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()
    model_class: str = ""
    steps: list[Note] = field(default_factory=list)
    round_trip: bool = True
    observed: bool = True
    missing_weights: Mapping[str, bool] = field(default_factory=dict)
    continued: bool = False
