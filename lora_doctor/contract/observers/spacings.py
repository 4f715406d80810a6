"""Spacings: how far apart the numbers are that trained weights in bfloat16 can have.

A step of less than half that distance is rounded away: the weight is what it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lora_doctor.contract.observers.base import Observer, Setting
from lora_doctor.results.observations import SpacingReading

if TYPE_CHECKING:
    from lora_doctor.contract.adapters import AdapterLayer

#: Numbers of a weight that are looked at, evenly spread.
_SAMPLE = 10_000
#: Binary digits behind the first one.
_DIGITS = 7


@dataclass
class _Alike:
    """Trained weights of layers that are alike. ``spacings``: of one layer's numbers."""

    pattern: str
    #: A vector beside matrices, such as DoRA's magnitudes.
    part: str = ""
    parameters: int = 0
    layers: set[str] = field(default_factory=set)
    spacings: list[Any] = field(default_factory=list)


class Spacings(Observer):
    """Fills ``Observations.spacings``: one reading for layers that are alike."""

    field: ClassVar[str] = "spacings"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._found: dict[tuple[str, str], _Alike] = {}

    def before_step(self, layers: list[AdapterLayer]) -> None:
        import torch

        for layer in layers:
            trained = [one for one in layer.trainable if one.tensor.numel()]
            vectors = [one for one in trained if _is_vector(one.tensor)]
            beside = len(vectors) < len(trained)
            for parameter in trained:
                if parameter.tensor.dtype is not torch.bfloat16:
                    continue
                part = parameter.part if beside and parameter in vectors else ""
                alike = self._found.setdefault((layer.pattern, part), _Alike(layer.pattern, part))
                alike.parameters += int(parameter.tensor.numel())
                alike.layers.add(layer.path)
                if len(alike.layers) == 1:  # one layer is enough
                    alike.spacings.append(_spacings(parameter.tensor))

    def readings(self) -> tuple[SpacingReading, ...]:
        import torch

        return tuple(
            SpacingReading(
                pattern=alike.pattern,
                part=alike.part,
                layers=len(alike.layers),
                parameters=alike.parameters,
                spacing=float(torch.cat(alike.spacings).quantile(0.1)),
            )
            for alike in self._found.values()
        )


def _is_vector(tensor: Any) -> bool:
    return len([size for size in tensor.shape if size > 1]) <= 1


def _spacings(tensor: Any) -> Any:
    """The distance from each of these numbers to the next larger one."""
    import torch

    values = tensor.detach().flatten()
    values = values[:: max(1, values.numel() // _SAMPLE)].float().cpu()
    exponents = torch.frexp(values).exponent  # of a number in [0.5, 1)
    return torch.where(values == 0, 0.0, torch.exp2((exponents - 1 - _DIGITS).float()))
