"""Layers: how large the numbers are that each layer puts out, and the gradient of its adapters.

A layer is a module whose path ends in its first number, such as ``model.layers.3``. What is read
says where numbers grow from layer to layer; no rule judges it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lora_doctor.contract.locator import tensors_in
from lora_doctor.contract.observers.base import Observer, Setting
from lora_doctor.results.observations import LayerReading
from lora_doctor.text import clean_path

if TYPE_CHECKING:
    from lora_doctor.contract.adapters import AdapterLayer

#: Layers that are read; the deepest models have fewer.
MOST = 400


@dataclass
class _Seen:
    """``squares``: the sum of the squared gradients of the adapters; ``None`` before any came."""

    dtype: str = ""
    max_abs: float = 0.0
    finite: bool = True
    squares: float | None = None


class Layers(Observer):
    """Fills ``Observations.layers``, in the order in which the model holds them."""

    field: ClassVar[str] = "layers"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._seen: dict[str, _Seen] = {}

    def watch_training(self, model: Any) -> Iterable[Any]:
        for path, module in _layers_of(model):
            self._seen.setdefault(path, _Seen())
            yield module.register_forward_hook(self.hook(self._look(path)))

    def _look(self, path: str) -> Any:
        def look(module: Any, inputs: Any, output: Any) -> None:
            tensors = (tensor for tensor in tensors_in(output) if tensor.is_floating_point())
            tensor = next(tensors, None)
            if tensor is None or not tensor.numel():
                return
            seen = self._seen[path]
            seen.dtype = str(tensor.dtype).removeprefix("torch.")
            low, high = (float(value) for value in tensor.detach().aminmax())
            largest = max(abs(low), abs(high))
            if math.isfinite(largest):
                seen.max_abs = max(seen.max_abs, largest)
            else:
                seen.finite = False

        return look

    def after_step(self, layers: list[AdapterLayer]) -> None:
        """The gradients are those of the first batch; a scaler has taken its factor out again."""
        for layer in layers:
            seen = self._seen.get(_layer_of(layer.path))
            if seen is None:
                continue
            for parameter in layer.trainable:
                gradient = parameter.tensor.grad
                if gradient is None:
                    continue
                norm = float(gradient.detach().float().norm())
                seen.squares = (seen.squares or 0.0) + norm * norm

    def readings(self) -> tuple[LayerReading, ...]:
        return tuple(
            LayerReading(path, seen.dtype, seen.max_abs, seen.finite, _root(seen.squares))
            for path, seen in self._seen.items()
            if seen.dtype
        )


def _layers_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Modules with parts of their own whose path ends in its first number; not the adapters'."""
    found = 0
    for path, module in model.named_modules():
        clean = clean_path(path)
        if not clean or _layer_of(clean) != clean or ".lora_" in path:
            continue
        if not clean.rpartition(".")[2].isdigit() or next(module.children(), None) is None:
            continue
        found += 1
        if found > MOST:
            return
        yield clean, module


def _layer_of(path: str) -> str:
    """The path up to its first number."""
    parts = path.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1]) if numbered else path


def _root(squares: float | None) -> float | None:
    return math.sqrt(squares) if squares is not None and math.isfinite(squares) else None
