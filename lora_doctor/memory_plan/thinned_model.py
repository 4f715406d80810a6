"""The base model to measure on: on meta, equal layers once or twice, where it runs so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_doctor.memory_plan.batch import PlannedBatch, planned_batch
from lora_doctor.model.built_in_adapters import trains_its_own
from lora_doctor.model.loading import peft_config
from lora_doctor.model.meta_copy import MetaCopy, meta_copy
from lora_doctor.model.target_entries import meaning
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.tiny_model.batch.result import BatchError

_DEPTH = re.compile(r"(?:\w+_)?(?:num|n)_(?:\w+_)?(?:layers?|blocks)|(?:en|de)coder_layers|depth")


@dataclass
class Runnable:
    """A meta copy in float32 and a batch that it takes."""

    thinned: MetaCopy
    batch: PlannedBatch


def runnable(model: Any, recipe: Recipe, size: int, length: int, dtype: str) -> Runnable:
    """The smallest meta copy of this model that takes as many kinds of input as all of it does.

    Raises:
        BatchError: none takes any; the reason is the whole model's.
    """
    best: Runnable | None = None
    reason = BatchError("nothing was tried")
    for thinned in _candidates(model, recipe):
        try:
            batch = planned_batch(thinned.model, size, length, dtype)
        except BatchError as error:
            reason = error
            continue
        if best is None or len(batch.left_out) < len(best.batch.left_out):
            best = Runnable(thinned, batch)
        if not batch.left_out:
            break
    if best is None:
        raise reason
    return best


def own_batch(model: Any, inputs: Mapping[str, Any]) -> Runnable:
    """The batch that a model of the user's came with, on all of the model."""
    names = ("input_ids", "decoder_input_ids")
    ids = next((inputs[name] for name in names if hasattr(inputs.get(name), "shape")), None)
    length = int(ids.shape[1]) if ids is not None and ids.dim() > 1 else 0
    return Runnable(meta_copy(model), PlannedBatch(dict(inputs), length, "labels"))


def _candidates(model: Any, recipe: Recipe) -> Iterator[MetaCopy]:
    own = trains_its_own(model, recipe)
    mean = None if own else meaning(peft_config(recipe))
    if mean is not None:
        thin = meta_copy(model, mean)
        if thin.repeats:
            yield thin
            thinned = meta_copy(model, mean)
            _tell_depth(thinned)
            yield thinned
    yield meta_copy(model)


def _tell_depth(thinned: MetaCopy) -> None:
    """Set the number of layers in the configs that say it: some code counts from the end."""
    for path, module in thinned.model.named_modules():
        lists = [
            (name, child) for name, child in module.named_children()
            if any(p.rpartition(".")[0] == f"{path}.{name}".strip(".") for p in thinned.repeats)
        ]  # fmt: skip
        config = getattr(module, "config", None)
        for name, child in lists:
            inside = f"{path}.{name}".strip(".")
            full = sum(thinned.repeats.get(f"{inside}.{key}", 1) for key in child._modules)
            for key, value in vars(config).items() if config is not None else ():
                if _DEPTH.fullmatch(key) and value == full:
                    vars(config)[key] = len(child._modules)
