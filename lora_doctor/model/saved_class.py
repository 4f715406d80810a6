"""Which weights a checkpoint lacks, by the class that its config says it was saved from: for a
checkpoint of which no file of weights is at hand.

Runs where torch and transformers are imported; nothing is read, and nothing has storage.
"""

from __future__ import annotations

import copy
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.model.auto_classes import quiet


def shapes_by_class(cls: Any, saved: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of ``cls`` that a checkpoint of the class ``saved`` can have.

    Everything in the base model counts as there: a checkpoint of a language model may hold the
    pooler of another head. So does a module beside it that both classes have. What is left out is
    a head that the saved class has none of.

    Raises:
        EvidenceError: one of the classes cannot be asked.
    """
    import transformers

    owner = getattr(transformers, saved, None) if saved.isidentifier() else None
    if owner is None or not hasattr(owner, "_from_config"):
        raise EvidenceError(f"this transformers has no class {saved} to ask")
    try:
        wanted, stored = _without_storage(cls, config), _without_storage(owner, config)
    except Exception as error:
        raise EvidenceError(
            f"{saved} cannot be built from this config: {type(error).__name__}"
        ) from error
    prefix = str(getattr(wanted, "base_model_prefix", "") or "")
    if not prefix or not hasattr(wanted, prefix):
        raise EvidenceError(f"{cls.__name__} has no base model beside its head")
    known = {prefix, *(name for name, _ in stored.named_children())}
    return {
        name: tuple(value.shape)
        for name, value in wanted.state_dict().items()
        if name.partition(".")[0] in known
    }


def _without_storage(cls: Any, config: Any) -> Any:
    import torch

    config = copy.deepcopy(config)
    vars(config).pop("quantization_config", None)
    with quiet(), torch.device("meta"):
        return cls._from_config(config)
