"""Which layers would be quantized where a model is loaded in 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FloatPart:
    """A part that must stay in floating point, and how much of it would be quantized."""

    #: ``head``: what transformers keeps out of quantization by itself unless it is given a list.
    kind: Literal["adapter", "modules_to_save", "head"]
    #: Name of the adapter, or path of the module.
    name: str
    #: Weight tensors that it has.
    tensors: int
    #: Of these, how many would be quantized.
    quantized: int
    #: Paths of some of the quantized ones.
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeptWeights:
    """Weights that stay as they are where the model is loaded in 4 or 8 bits; alike ones
    together."""

    #: Path of the module or parameter with every number as ``*``.
    pattern: str
    #: Class of the module.
    class_name: str
    #: Why: a linear layer that a list skips, a parameter that is no layer (fused experts), a
    #: convolution, or a module that is no linear layer to the library.
    kind: Literal["skipped", "parameter", "convolution", "other"]
    #: How many there are.
    count: int
    #: Numbers in all of them together.
    weights: int


@dataclass(frozen=True)
class Quantization:
    """Which layers the installed transformers would quantize: its own replacement, run on the
    module tree at full size."""

    #: Format of the quantized weights.
    kind: Literal["4bit", "8bit"]
    #: Who asks for it: the recipe, or the checkpoint, whose list wins over the recipe's.
    origin: Literal["recipe", "checkpoint"]
    #: The list of modules to skip that is in force; ``None`` when nobody gave one.
    skip: tuple[str, ...] | None
    #: The list that transformers makes when it is given none.
    default_skip: tuple[str, ...]
    #: Layers that can be quantized.
    linears: int
    #: Layers that would be.
    quantized: int
    #: Parts that must stay in floating point.
    parts: tuple[FloatPart, ...] = ()
    #: A list with which, by the same replacement, all parts stay as they are and everything else is
    #: quantized as before; empty when none is needed or none does it.
    proposed_skip: tuple[str, ...] = ()
    #: Layers that are quantized with ``proposed_skip``.
    quantized_with_proposal: int = 0
    #: Numbers in the matrices of the model, embeddings and output head left out.
    weights: int = 0
    #: Of ``weights``, those that would be quantized.
    quantized_weights: int = 0
    #: The others, the most numbers first.
    kept: tuple[KeptWeights, ...] = ()
