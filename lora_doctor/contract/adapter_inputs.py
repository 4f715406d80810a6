"""What a batch has to hold for the adapters' sake: the task of each row, the tokens that
they train, and those that they wait for."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from lora_doctor.model.peft_models import own_config
from lora_doctor.nn.embeddings import input_embeddings
from lora_doctor.recipe.recipe import Recipe

TASK_IDS = "task_ids"


def with_task_ids(model: Any, batch: Any) -> Any:
    """The batch with ``task_ids``, which a collator for several tasks makes, where this kind of
    adapter takes them (Poly, multitask prompts): one task after the other, a row each."""
    import torch

    config = own_config(model)
    if config is None or TASK_IDS in batch.inputs or not _takes_task_ids(model):
        return batch
    rows = next((v.shape[0] for v in batch.inputs.values() if getattr(v, "ndim", 0)), 1)
    tasks = max(int(getattr(config, key, None) or 1) for key in ("num_tasks", "n_tasks"))
    device = next(model.parameters()).device
    ids = torch.arange(rows, device=device) % tasks
    return replace(batch, inputs={**batch.inputs, TASK_IDS: ids})


def _takes_task_ids(model: Any) -> bool:
    """Whether the forward of this kind of adapter has them: of its tuner, or of what makes its
    prompts. PEFT's outer model has them for every kind."""
    parts = (part for part in model.modules() if type(part).__module__.startswith("peft.tuners."))
    forwards = {type(part).forward for part in parts}
    return any(TASK_IDS in inspect.signature(forward).parameters for forward in forwards)


def with_tokens_for_adapters(model: Any, batch: Any, recipe: Recipe) -> Any:
    """The batch with the tokens that the recipe trains, and those that its adapters wait for.

    ``model``: with or without adapters; its embeddings say which ids there are.
    """
    return _with_invocation_tokens(model, with_trained_tokens(model, batch, recipe), recipe)


def with_trained_tokens(model: Any, batch: Any, recipe: Recipe) -> Any:
    """The batch with the tokens whose embeddings the recipe trains, in place of others: one that
    was made up has them by chance only, and they would get no gradient.

    ``model``: with or without adapters; its embeddings say which ids there are.
    """
    ids, rows = batch.inputs.get("input_ids"), _rows(model)
    if batch.modality != ["text"] or getattr(ids, "ndim", 0) != 2 or rows is None:
        return batch
    wanted = [token for token in recipe.trained_tokens() if token < rows]
    absent = [token for token in wanted if not bool((ids == token).any())]
    if not absent:
        return batch
    changed = ids.clone()
    mask = batch.inputs.get("attention_mask")
    shown = mask.bool() if getattr(mask, "shape", None) == ids.shape else changed == changed
    places = shown.nonzero()
    for token, (row, column) in zip(absent, places.tolist(), strict=False):
        changed[row, column] = token
    return replace(batch, inputs={**batch.inputs, "input_ids": changed})


def _with_invocation_tokens(model: Any, batch: Any, recipe: Recipe) -> Any:
    """The batch with the sequence after which an activated LoRA (aLoRA) acts, in the middle of
    each row: without it the adapters do nothing, and get a gradient of zero."""
    import torch

    ids, rows = batch.inputs.get("input_ids"), _rows(model)
    sequence = recipe.invocation_tokens()
    if batch.modality != ["text"] or getattr(ids, "ndim", 0) != 2 or rows is None or not sequence:
        return batch
    start = (ids.shape[1] - len(sequence)) // 2
    if start < 1 or max(sequence) >= rows:
        return batch
    changed = ids.clone()
    changed[:, start : start + len(sequence)] = torch.tensor(sequence, device=ids.device)
    return replace(batch, inputs={**batch.inputs, "input_ids": changed})


def _rows(model: Any) -> int | None:
    weight = getattr(input_embeddings(model), "weight", None)
    return int(weight.shape[0]) if weight is not None and weight.ndim == 2 else None
