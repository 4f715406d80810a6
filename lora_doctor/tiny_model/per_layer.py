"""Layers of their own: entries of a config that hold for single layers only.

transformers 5 keeps them under `per_layer_config` (`{5: {"head_dim": 512}}`), behind a property of
every config; the numbers are those of the full-size model and must follow the layers that are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "per_layer_config"


def overrides_of(config: Any) -> dict[int, dict[str, Any]]:
    """Number of a layer to the entries that it has instead of the config's own."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    entries = config.to_dict().get(KEY) or {}
    return {int(layer): dict(own) for layer, own in entries.items()}


def set_overrides(config: Any, overrides: Mapping[int, Mapping[str, Any]]) -> None:
    """Write them through the config's own property, which checks the numbers."""
    setattr(config, KEY, {layer: dict(entries) for layer, entries in overrides.items()})


def renumbered(
    overrides: Mapping[int, dict[str, Any]], kept: list[int] | None
) -> dict[int, dict[str, Any]]:
    """Those of the layers in `kept`, by their new numbers; all when nothing was cut."""
    if kept is None:
        return dict(overrides)
    return {new: overrides[old] for new, old in enumerate(kept) if old in overrides}


def run_lengths(value: Any, length: int) -> list[Any] | None:
    """The entries of all layers, where `value` writes them as `[[kinds, times], ...]` (GPT-Neo's
    `attention_types`) and they are as many as there are layers."""
    if not isinstance(value, (list, tuple)) or not value:
        return None
    entries: list[Any] = []
    for item in value:
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            return None
        kinds, times = item
        if not isinstance(kinds, (list, tuple)) or type(times) is not int or times > length:
            return None
        entries += list(kinds) * times
    return entries if len(entries) == length else None
