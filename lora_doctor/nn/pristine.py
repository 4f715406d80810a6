"""What a class makes of its config by itself: the same model, constructed once more."""

from __future__ import annotations

import copy
from typing import Any


def pristine(model: Any) -> Any:
    """A model of the same class and config, without weights; ``None`` when none can be built so."""
    import torch

    try:
        with torch.device("meta"):
            return type(model)(copy.deepcopy(model.config))
    except Exception:  # noqa: BLE001 - a class may want more than its config; then nobody is asked
        return None


def frozen_by_its_class(model: Any) -> bool:
    """Whether a class of transformers freezes what is frozen here when it is constructed.

    A class of the user's that does so was told to by the user.
    """
    if not type(model).__module__.startswith("transformers."):
        return False
    fresh = pristine(model)
    if fresh is None:
        return False
    flags = {name: parameter.requires_grad for name, parameter in fresh.named_parameters()}
    own = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return not all(own.values()) and flags == own
