"""How much of a model 4-bit or 8-bit loading quantizes, counted in weights and not in layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.model.module_path import pattern_of
from lora_doctor.nn.embeddings import input_embeddings, output_embeddings
from lora_doctor.results.quantization import KeptWeights

#: Kinds of kept weights that are listed, at most.
_LISTED = 64

Kind = Literal["skipped", "parameter", "convolution", "other"]


@dataclass(frozen=True)
class QuantizedShare:
    """Numbers in the matrices of a model, embeddings and output head left out: all, those that are
    quantized, and the others by what they are, the most first."""

    weights: int
    quantized: int
    kept: tuple[KeptWeights, ...]


def count_weights(
    model: Any, linears: Collection[str], quantized: Collection[str]
) -> QuantizedShare:
    """Count the weights of a model, which may be on the meta device.

    Args:
        linears: paths of the layers that the library quantizes where nothing is skipped.
        quantized: paths of those that it does quantize.
    """
    total = taken = 0
    groups: dict[tuple[str, str, Kind], list[int]] = {}
    for path, name, module, weight in _matrices(model):
        size = int(weight.numel())
        total += size
        if path in quantized:
            taken += size
            continue
        kind = _kind(path, name, module, linears)
        shown = path if kind in ("skipped", "convolution") or name == "weight" else f"{path}.{name}"
        key = (pattern_of(shown.lstrip(".")), type(module).__name__, kind)
        groups.setdefault(key, []).append(size)
    kept = [
        KeptWeights(pattern, class_name, kind, len(sizes), sum(sizes))
        for (pattern, class_name, kind), sizes in groups.items()
    ]
    kept.sort(key=lambda one: -one.weights)
    return QuantizedShare(total, taken, tuple(kept[:_LISTED]))


def _matrices(model: Any) -> Iterator[tuple[str, str, Any, Any]]:
    """Path, name of the parameter, module and parameter of every weight of two dimensions or more
    outside of embeddings and the output head; one that is shared comes once."""
    import torch

    ends = {id(input_embeddings(model)), id(output_embeddings(model))}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) or id(module) in ends:
            seen.update(id(weight) for weight in module._parameters.values())
            continue
        for name, weight in module._parameters.items():
            if weight is None or weight.dim() < 2 or id(weight) in seen:
                continue
            seen.add(id(weight))
            yield path, name, module, weight


def _kind(path: str, name: str, module: Any, linears: Collection[str]) -> Kind:
    if path in linears:
        return "skipped"
    if hasattr(module, "kernel_size"):
        return "convolution"
    return "other" if name == "weight" else "parameter"
