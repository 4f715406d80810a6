"""How a model's own code uses quantized layers: a reading, data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Use = Literal["weight", "output", "input", "class"]


@dataclass(frozen=True)
class QuantizedUse:
    """Quantized layers that are used as only layers in floating point can be, seen by running them.

    ``use``: ``weight`` when the model's code reads the weight itself (its numbers or its dtype),
    ``output`` when it changes in place what the layer gave out, ``input`` when it hands an 8-bit
    layer more than three dimensions, ``class`` when the layer had a forward of its own, which the
    quantized one has not. ``patterns``: paths, numbers as ``*``. ``where``: the line of
    code. ``error``: what was raised. ``names``: modules that must not be quantized, for this use
    and the others; ``skip``: ``llm_int8_skip_modules`` with them, with which the same model was
    executed and runs; ``quantized`` of its ``linears`` layers are still quantized then.
    """

    use: Use
    patterns: tuple[str, ...]
    where: str
    error: str
    names: tuple[str, ...]
    skip: tuple[str, ...]
    quantized: int
    linears: int
