"""Activations: the largest numbers that modules put out, where float16 is asked for.

With random weights they say nothing; then only those modules are read of which the model's class
says that they must compute in float32, for the dtype in which they do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from lora_doctor.contract.half_precision import LARGEST_FLOAT16
from lora_doctor.contract.locator import tensors_in
from lora_doctor.contract.observers.base import Observer, Setting
from lora_doctor.model.module_path import pattern_of
from lora_doctor.results.observations import ActivationReading
from lora_doctor.text import clean_path


@dataclass
class _Seen:
    """What a module has put out so far. ``true``: the largest value when the module is run again
    in float32, for the first one that left float16."""

    path: str
    class_name: str
    dtype: str
    kept: bool
    max_abs: float = 0.0
    finite: bool = True
    true: float | None = None

    @property
    def overflows(self) -> bool:
        return not self.finite or self.max_abs >= LARGEST_FLOAT16


class Activations(Observer):
    """Fills ``Observations.activations``: in the order of the forward, the largest of each layer,
    the first that is too large for float16, and one of the modules that are kept in float32."""

    field: ClassVar[str] = "activations"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._seen: dict[str, _Seen] = {}
        self._overflowed = False

    def watch_training(self, model: Any) -> Iterable[Any]:
        if not self.setting.float16:
            return
        kept = set(_kept_in_float32(model))
        for path, module in model.named_modules():
            if not clean_path(path) or ".lora_" in path:
                continue  # the whole, and the inside of adapters
            if self.setting.user_weights or path in kept:
                look = self.hook(self._look(path, path in kept))
                yield module.register_forward_hook(look, with_kwargs=True)

    def _look(self, path: str, kept: bool) -> Any:
        def look(module: Any, inputs: Any, named: Any, output: Any) -> None:
            # What stands behind the first one may be a mask, full of the dtype's smallest number.
            tensors = (tensor for tensor in tensors_in(output) if tensor.is_floating_point())
            tensor = next(tensors, None)
            if tensor is None or not tensor.numel():
                return
            name, dtype = type(module).__name__, str(tensor.dtype).removeprefix("torch.")
            seen = self._seen.setdefault(path, _Seen(path, name, dtype, kept))
            low, high = (float(value) for value in tensor.detach().aminmax())
            largest = max(abs(low), abs(high))  # NaN stays NaN
            if math.isfinite(largest):
                seen.max_abs = max(seen.max_abs, largest)
                return
            seen.finite = False
            if not self._overflowed:
                self._overflowed = True
                seen.true = _in_float32(module, inputs, named)

        return look

    def readings(self) -> tuple[ActivationReading, ...]:
        every = list(self._seen.values())
        first = next((seen for seen in every if seen.overflows), None)
        layers: dict[str, _Seen] = {}
        kept: dict[str, _Seen] = {}
        for seen in every:
            if self.setting.user_weights and seen.finite:
                largest = layers.setdefault(_layer(seen.path), seen)
                if seen.max_abs > largest.max_abs:
                    layers[_layer(seen.path)] = seen
            if seen.kept:
                kept.setdefault(pattern_of(clean_path(seen.path)), seen)
        chosen = [first, *layers.values(), *kept.values()]
        return tuple(
            ActivationReading(
                path=clean_path(seen.path),
                class_name=seen.class_name,
                dtype=seen.dtype,
                max_abs=seen.max_abs if seen.true is None else seen.true,
                finite=seen.finite,
                kept_in_float32=seen.kept,
            )
            for seen in every
            if any(seen is item for item in chosen)
        )


def _layer(path: str) -> str:
    """The path up to its first number: what stands in one layer has one."""
    parts = path.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1]) if numbered else path


def _kept_in_float32(model: Any) -> Iterator[str]:
    """Layers with a matrix that transformers leaves in float32 when it loads the model in float16:
    the classes of the model say so."""
    for path, part in model.named_modules():
        names = {
            str(name)
            for key in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
            for name in getattr(part, key, None) or ()
        }
        if not names:
            continue
        for inner, module in part.named_modules():
            weight = getattr(module, "weight", None)
            if getattr(weight, "ndim", 0) < 2 or ".lora_" in inner:
                continue
            if any(f".{name}." in f".{clean_path(inner)}.weight." for name in names):
                yield f"{path}.{inner}" if path else inner


def _in_float32(module: Any, inputs: Any, named: Any) -> float | None:
    """The largest value that a single layer puts out in float32; ``None`` when it is no single
    layer, or its inputs are not finite either."""
    import torch

    if next(module.children(), None) is not None:
        return None
    given = [x for x in tensors_in((inputs, named)) if x.is_floating_point()]
    if not all(bool(torch.isfinite(x).all()) for x in given):
        return None
    twin = copy.deepcopy(module).float()
    twin._forward_hooks.clear()
    twin._forward_pre_hooks.clear()
    with torch.no_grad(), torch.autocast(given[0].device.type if given else "cpu", enabled=False):
        try:
            output = twin(*_floats(inputs), **_floats(named))
        except Exception:  # noqa: BLE001 - a packed layer that runs in its own dtype only
            return None
    largest = max((float(x.abs().max()) for x in tensors_in(output)), default=math.nan)
    return largest if math.isfinite(largest) else None


def _floats(value: Any) -> Any:
    """The same arguments with floating tensors in float32."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_floats(item) for item in value)
    return value
