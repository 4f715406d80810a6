"""Models whose adapters are all frozen: as they are loaded, and when they are called to train."""

from __future__ import annotations

import weakref
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.call_sites import Place, caller

#: Where models with a frozen adapter were loaded, and the adapter's name.
_loaded: weakref.WeakKeyDictionary[Any, tuple[Place | None, str]] = weakref.WeakKeyDictionary()


def loaded(acting: Acting, model: Any, name: str) -> None:
    """After ``PeftModel.from_pretrained``: told where it left nothing trainable."""
    if model is None or any(one.requires_grad for one in model.parameters()):
        return
    place = caller()
    _loaded[model] = (place, name)
    _tell(acting, "loaded_frozen", model, place, name)


def called_to_train(acting: Acting, model: Any) -> None:
    """Told once: the model is in training mode, gradients are on, and nothing in it takes one."""
    import torch

    if acting.seen("frozen") or not (
        torch.is_grad_enabled() and model.training and hasattr(model, "peft_config")
    ):
        return
    place, name = _loaded.get(model, (None, ""))
    _tell(acting, "frozen", model, place, name)


def _tell(acting: Acting, kind: str, model: Any, place: Place | None, name: str) -> None:
    from lora_doctor.contract.random_weights import parameters_of_base

    with acting.ours():
        total = sum(1 for _ in model.parameters())
        adapters = max(0, total - len(parameters_of_base(model)))
    acting.journal.tell(
        kind, tensors=adapters, adapter=name, place=None if place is None else vars(place)
    )
