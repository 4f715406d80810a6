"""Misfits: layers that PEFT takes for a plain matrix, by their base class, and that are none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from lora_doctor.contract.observers.base import Observer, Setting
from lora_doctor.results.observations import NonLinearOutputReading

if TYPE_CHECKING:
    from lora_doctor.contract.adapters import AdapterLayer


class NonLinearOutputs(Observer):
    """Fills ``Observations.non_linear_outputs``: adapted linear layers of a class of the model's
    own whose output is no product of the input with the weight. LoRA adds such a product to it."""

    field: ClassVar[str] = "non_linear_outputs"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._layers: list[AdapterLayer] = []
        self._found: dict[str, NonLinearOutputReading] = {}

    def attached(self, model: Any, layers: list[AdapterLayer]) -> None:
        self._layers = layers

    def watch_training(self, model: Any) -> Iterable[Any]:
        from torch import nn

        for layer in self._layers:
            base = getattr(layer.module, "base_layer", None)
            if isinstance(base, nn.Linear) and not type(base).__module__.startswith("torch."):
                yield base.register_forward_hook(self.hook(self._compare(layer)))

    def _compare(self, layer: AdapterLayer) -> Callable[..., None]:
        def look(module: Any, inputs: Any, output: Any) -> None:
            import torch

            if not inputs or not isinstance(inputs[0], torch.Tensor):
                return
            # PEFT's own number: the rows of a weight in 4 bits are packed.
            rows = getattr(layer.module, "out_features", module.weight.shape[0])
            wanted = [*inputs[0].shape[:-1], rows]
            tensor = isinstance(output, torch.Tensor)
            if not tensor or list(output.shape) != wanted:
                given = f"a tensor {list(output.shape)}" if tensor else _in_words(output)
                self._found[layer.path] = NonLinearOutputReading(
                    layer.path, type(module).__name__, given, f"a tensor {wanted}"
                )

        return look

    def readings(self) -> tuple[NonLinearOutputReading, ...]:
        return tuple(self._found.values())


def _in_words(output: Any) -> str:
    name = type(output).__name__
    return f"a {name} of {len(output)}" if hasattr(output, "__len__") else f"a {name}"
