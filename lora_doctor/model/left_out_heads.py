"""Heads that `get_peft_model` would train and save, and that `model.add_adapter` leaves frozen."""

from __future__ import annotations

from typing import Any

from lora_doctor.model.peft_models import own_config, peft_models
from lora_doctor.model.wrapper import wrapper_call


def left_out_heads(model: Any) -> tuple[str, ...]:
    """Paths of the heads that PEFT's wrapper for the adapter's task type keeps with it, in a model
    that has the adapter without the wrapper, where they are frozen and no copy of them is trained.
    """
    config = own_config(model)
    task = getattr(getattr(config, "task_type", None), "value", getattr(config, "task_type", None))
    if not task or peft_models(model):
        return ()
    try:
        kept = wrapper_call(str(task)).keeps
    except Exception:  # noqa: BLE001 - the wrapper of a PEFT that we do not know yet
        return ()
    return tuple(
        path
        for path, module in model.named_modules()
        if path.rpartition(".")[2] in kept
        and not hasattr(module, "original_module")
        and any(True for _ in module.parameters())
        and not any(parameter.requires_grad for parameter in module.parameters())
    )
