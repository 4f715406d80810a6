"""How many optimizer steps a run has, as the Trainer counts them, and how many warm up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lora_doctor.results.supervision import TrainingPlan

#: The Trainer's defaults.
_DEFAULTS: Mapping[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3,
}


def training_plan(
    rows: int, recipe: Mapping[str, Any], *, partial_steps: bool = True
) -> TrainingPlan:
    """The steps of a run over so many rows on one device.

    Args:
        rows: of the training set, before packing.
        recipe: ``per_device_train_batch_size``, ``gradient_accumulation_steps``,
            ``num_train_epochs``, ``max_steps``, ``warmup_steps`` and ``warmup_ratio`` are read.
        partial_steps: whether the batches that are left at the end of an epoch are a step; older
            releases of the Trainer do not count them.
    """
    given = {key: recipe.get(key) for key in _DEFAULTS}
    values = {key: _DEFAULTS[key] if value is None else value for key, value in given.items()}
    batch, accumulation = (
        values["per_device_train_batch_size"],
        values["gradient_accumulation_steps"],
    )
    batches = math.ceil(rows / batch)
    steps_of = math.ceil if partial_steps else math.floor
    per_epoch = max(steps_of(batches / accumulation), 1)
    most = recipe.get("max_steps")
    steps = int(most) if most else math.ceil(values["num_train_epochs"] * per_epoch)
    unsaid = [key for key, one in given.items() if one is None]
    if most and "num_train_epochs" in unsaid:
        unsaid.remove("num_train_epochs")
    return TrainingPlan(
        rows=rows,
        steps_per_epoch=per_epoch,
        steps=max(steps, 1),
        warmup_steps=_warmup(recipe, steps),
        rows_per_step=batch * accumulation,
        defaults=tuple(f"{key}={values[key]}" for key in unsaid),
    )


def _warmup(recipe: Mapping[str, Any], steps: int) -> int:
    """``warmup_steps`` wins over ``warmup_ratio``; below 1 it is a ratio (transformers 5)."""
    asked = recipe.get("warmup_steps") or 0
    if asked >= 1:
        return int(asked)
    return math.ceil(steps * (asked or recipe.get("warmup_ratio") or 0))
