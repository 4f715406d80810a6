"""The one input that is not the model's but an adapter's: which task each row belongs to."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from typing import Any

from lora_doctor.model.peft_models import own_config

TASK_IDS = "task_ids"


def with_task_ids(model: Any, batch: Any) -> Any:
    """The batch with ``task_ids``, which a collator for several tasks makes, where this kind of
    adapter takes them (Poly, multitask prompts): one task after the other, a row each."""
    import torch

    config = own_config(model)
    if config is None or TASK_IDS in batch.inputs or not _takes_task_ids(config):
        return batch
    rows = next((v.shape[0] for v in batch.inputs.values() if getattr(v, "ndim", 0)), 1)
    tasks = max(int(getattr(config, key, None) or 1) for key in ("num_tasks", "n_tasks"))
    device = next(model.parameters()).device
    ids = torch.arange(rows, device=device) % tasks
    return replace(batch, inputs={**batch.inputs, TASK_IDS: ids})


def _takes_task_ids(config: Any) -> bool:
    """Whether PEFT's own class for this kind of adapter has them in its forward."""
    for name in ("peft.mapping", "peft.peft_model"):
        tuners = getattr(importlib.import_module(name), "PEFT_TYPE_TO_TUNER_MAPPING", {})
        forward = getattr(tuners.get(config.peft_type), "forward", None)
        if forward is not None:
            return TASK_IDS in inspect.signature(forward).parameters
    return False
