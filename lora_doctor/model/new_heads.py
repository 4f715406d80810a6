"""Heads that a checkpoint has no weights for: ``from_pretrained`` makes them at random each time.

A sequence classifier on a base checkpoint is the usual case. What PEFT does not save of them is
another one after every loading. Told from the names in the checkpoint; no weight is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.static.piece import read_json_object
from lora_doctor.static.weights import read_weights

_INDEX = "model.safetensors.index.json"


def new_heads(model: Any, source: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the modules beside the base model that the checkpoint of ``source`` lacks.

    A module counts when no tensor of the checkpoint has its name as a part, and no weight of it is
    tied to another module. Empty where there is no checkpoint, or its names are not known.
    """
    prefix = getattr(model, "base_model_prefix", "")
    if source["kind"] not in ("folder", "hub") or not prefix or not hasattr(model, prefix):
        return ()
    parts = {part for name in _names(source["folder"]) for part in name.split(".")}
    if not parts:
        return ()
    times = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return tuple(
        name
        for name, child in model.named_children()
        if name != prefix
        and name not in parts
        and any(True for _ in child.parameters())
        and all(times[id(parameter)] == 1 for parameter in child.parameters())
    )


def loaded_again(fresh: Callable[[], Any], heads: tuple[str, ...]) -> Callable[[], Any]:
    """A maker of bases as loading makes them: the same weights, and new ones in ``heads``."""
    if not heads:
        return fresh

    def make() -> Any:
        import torch

        base = fresh()
        generator = torch.Generator().manual_seed(1)
        for path in heads:
            for parameter in base.get_submodule(path).parameters():
                if parameter.dim() < 2 or not parameter.is_floating_point():
                    continue
                new = torch.randn(tuple(parameter.shape), generator=generator)
                scale = parameter.detach().float().std()
                # A tensor of its own: the old one may be somebody else's memory.
                parameter.data = (new.to(scale.device) * scale).to(parameter.dtype)
        return base

    return make


def _names(folder: str | None) -> list[str]:
    """Names of the tensors in a folder's checkpoint; empty when they cannot all be had."""
    if folder is None:
        return []
    place = Path(folder)
    try:
        if (place / _INDEX).is_file():
            return list(read_json_object(place / _INDEX).get("weight_map") or {})
        weights = read_weights(place)
    except EvidenceError:
        return []
    return [] if weights.unread else list(weights.tensors)
