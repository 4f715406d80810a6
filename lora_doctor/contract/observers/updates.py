"""Updates: what the first optimizer step does to the weights that LoRA sits on, and their size.

The update of a weight is ``scaling * (B A)`` after the step minus before it. It is never made: its
Frobenius norm follows from the two thin factors, so that a large model costs no more than a small
one.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lora_doctor.contract.observers.base import Observer, Setting
from lora_doctor.results.observations import UpdateReading

if TYPE_CHECKING:
    from lora_doctor.contract.adapters import AdapterLayer

#: Layers that are alike and measured; a model may have thousands.
ALIKE = 4


@dataclass
class _Watched:
    """A layer before the step: ``down`` is A, of rank rows, ``up`` is B, of rank columns."""

    layer: AdapterLayer
    adapter: str
    scaling: float
    down: Any
    up: Any


class Updates(Observer):
    """Fills ``Observations.updates``: one reading for layers that are alike."""

    field: ClassVar[str] = "updates"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._watched: dict[tuple[str, float, int], list[_Watched]] = {}
        self._readings: list[UpdateReading] = []

    def before_step(self, layers: list[AdapterLayer]) -> None:
        for layer in layers:
            for adapter, scaling in _scalings(layer.module).items():
                factors = _factors(layer.module, adapter)
                if factors is None or not any(p.got_gradient for p in layer.parameters):
                    continue
                down, up = factors
                if bool(up.any()):
                    continue  # not started at zero: A moves too, by what B happens to be
                key = (layer.pattern, scaling, int(down.shape[0]))
                alike = self._watched.setdefault(key, [])
                if len(alike) < ALIKE:
                    alike.append(_Watched(layer, adapter, scaling, down.clone(), up.clone()))

    def after_step(self, layers: list[AdapterLayer]) -> None:
        for (pattern, scaling, rank), alike in self._watched.items():
            updates, weights = [], []
            for watched in alike:
                weight = _weight(watched.layer.module)
                now = _factors(watched.layer.module, watched.adapter)
                if weight is None or now is None:
                    continue
                updates.append(abs(scaling) * _change(watched.down, watched.up, *now))
                weights.append(float(weight.norm()))
            if not any(updates) or not all(weights):
                continue  # no gradient yet, or a weight that cannot be read
            first = alike[0]
            self._readings.append(
                UpdateReading(
                    pattern=pattern,
                    layers=len(updates),
                    update_norm=math.hypot(*updates),
                    weight_norm=math.hypot(*weights),
                    shape=(int(first.up.shape[0]), int(first.down.shape[1])),
                    rank=rank,
                    scaling=scaling,
                    learning_rate=self.setting.learning_rate,
                )
            )
        self._watched.clear()

    def readings(self) -> tuple[UpdateReading, ...]:
        return tuple(self._readings)


def _scalings(module: Any) -> dict[str, float]:
    """Scaling of each active adapter of a LoRA layer; nothing for other adapters."""
    scaling = getattr(module, "scaling", None)
    if not isinstance(scaling, dict):
        return {}
    active = getattr(module, "active_adapters", None) or list(scaling)
    return {name: float(scaling[name]) for name in active if name in scaling}


def _factors(module: Any, adapter: str) -> tuple[Any, Any] | None:
    """A and B as matrices in float32; those of embeddings, which start the other way round, and
    of fused parameters, which are many at once, are left out."""
    down, up = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
    if down is None or up is None or adapter not in down or adapter not in up:
        return None
    if getattr(module, "parameter_name", None) is not None:
        return None
    a, b = (getattr(part[adapter], "weight", None) for part in (down, up))
    if a is None or b is None or a.shape[0] != b.shape[1]:
        return None
    return a.detach().flatten(1).float(), b.detach().flatten(1).float()


def _change(down: Any, up: Any, down_now: Any, up_now: Any) -> float:
    """Frobenius norm of ``up_now @ down_now - up @ down`` from matrices of twice the rank."""
    import torch

    left = torch.cat([up_now, -up], dim=1).double()
    right = torch.cat([down_now, down], dim=0).double()
    squared = ((left.T @ left) * (right @ right.T)).sum()
    return math.sqrt(max(float(squared), 0.0))


def _weight(module: Any) -> Any:
    """The weight under the adapter as it computes, in float32; ``None`` when it cannot be read."""
    base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    weight = getattr(base, "weight", None)
    if weight is None:
        return None
    # Four bits can lie in a floating dtype, too (`bnb_4bit_quant_storage`).
    if not weight.is_floating_point() or getattr(weight, "quant_state", None) is not None:
        library = importlib.import_module("peft.utils.integrations")
        if not hasattr(library, "dequantize_module_weight"):
            return None
        try:
            dequantized = library.dequantize_module_weight(base)
        finally:
            base.weight = weight  # PEFT puts a copy there, with which an 8-bit layer does not run
        weight = dequantized
    return weight.detach().float()
