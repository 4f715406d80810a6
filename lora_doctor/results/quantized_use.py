"""How a model's own code uses quantized layers: a reading, data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lora_doctor.text import quoted

Use = Literal["weight", "output", "input", "class"]


@dataclass(frozen=True)
class QuantizedUse:
    """Quantized layers used as only layers in floating point can be, seen by running them."""

    #: ``weight``: the model's code reads the weight itself (its values or its dtype). ``output``:
    #: it changes in place what the layer gave out. ``input``: it hands an 8-bit layer more than
    #: three dimensions. ``class``: the layer had a forward of its own, which the quantized one has
    #: not.
    use: Use
    #: Module paths with every number as ``*``.
    patterns: tuple[str, ...]
    #: ``file:line`` of the code.
    where: str
    #: What was raised.
    error: str
    #: Modules that must not be quantized, for this use and the others.
    names: tuple[str, ...]
    #: ``llm_int8_skip_modules`` with them, with which the same model was executed and runs.
    skip: tuple[str, ...]
    #: Layers that are still quantized with that list.
    quantized: int
    #: Layers that can be quantized.
    linears: int

    @property
    def sentence(self) -> str:
        """How the layers are used, without a full stop."""
        names = quoted(self.patterns, 4)
        one = len(self.patterns) == 1
        if self.use == "class":
            has = "has" if one else "have"
            return f"{names} {has} a forward of its own, which the quantized layer does not have"
        if self.use == "input":
            gets = "gets" if one else "get"
            return (
                f"{names} {gets} an input of four or more dimensions, which no 8-bit layer accepts"
            )
        if self.use == "output":
            return f"the model's code modifies in place the output of {names}, which is quantized"
        return f"the model's code reads the weight of {names}, which is quantized"
