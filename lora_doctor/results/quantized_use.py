"""How a model's own code uses quantized layers: a reading, data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lora_doctor.text import quoted

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

    @property
    def sentence(self) -> str:
        """How the layers are used, without a full stop."""
        names = quoted(self.patterns, 4)
        if self.use == "class":
            return f"{names} has a forward of its own, which the quantized layer in its place lacks"
        if self.use == "input":
            return f"{names} gets an input of four dimensions or more; no 8-bit layer takes it"
        if self.use == "output":
            return f"the model's code changes in place what {names} gives out, which is quantized"
        return f"the model's code reads the weight of {names}, which is quantized"
