"""Numbers that are compared: losses, logits, checksums, and adapters saved, reloaded and merged."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lora_doctor.copying import seed_everything
from lora_doctor.evidence.locator import clean_path, tensors_in

#: Relative to the largest absolute logit. Measured on healthy round trips: fp32 1e-7, fp16 1e-3,
#: bf16 1.1e-2; a lost adapter is off by 1e-1 and more.
MERGE_TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
RELOAD_TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}
CHUNK = 1 << 22  # elements of a tensor that are summed at a time


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference, and the same relative to the largest absolute value."""

    absolute: float
    relative: float
    comparable: bool = True
    why: str = ""


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """In eval mode without gradients; each module's own mode is put back."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def outputs_of(model: Any, batch: Any) -> list[Any]:
    """What the model answers in eval mode: its logits, else every floating output (not the loss)."""
    with evaluating(model):
        seed_everything(0)
        result = model(**batch.inputs)
    logits = getattr(result, "logits", None)
    if hasattr(logits, "is_floating_point"):
        return [logits.float()]
    if hasattr(result, "keys"):
        result = {key: result[key] for key in result if key not in ("loss", "past_key_values")}
    return [tensor.float() for tensor in tensors_in(result) if tensor.is_floating_point()]


def compare(first: list[Any], second: list[Any]) -> Difference:
    """How far two answers of :func:`outputs_of` lie apart."""
    import torch

    if [tuple(t.shape) for t in first] != [tuple(t.shape) for t in second]:
        shapes = f"{[tuple(t.shape) for t in first]} and {[tuple(t.shape) for t in second]}"
        return Difference(0.0, 0.0, False, f"outputs have different shapes: {shapes[:200]}")
    absolute, scale = 0.0, 0.0
    for one, two in zip(first, second, strict=True):
        if not one.numel():
            continue
        both = torch.isfinite(one) & torch.isfinite(two)
        if not torch.equal(torch.isfinite(one), torch.isfinite(two)) or not bool(both.any()):
            return Difference(0.0, 0.0, False, "outputs are not finite")
        absolute = max(absolute, float((one[both] - two[both]).abs().max()))
        scale = max(scale, float(one[both].abs().max()))
    return Difference(absolute, absolute / scale if scale else absolute)


def frozen_sums(model: Any) -> dict[str, tuple[int, int]]:
    """A checksum of every parameter that must not move and of every persistent buffer.

    Running statistics (batch norm) and buffers that are not saved (position tables) change by
    design and are left out.
    """
    import torch

    sums = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            sums[name] = checksum(parameter)
    for path, module in model.named_modules():
        if getattr(module, "track_running_stats", False):
            continue
        transient = getattr(module, "_non_persistent_buffers_set", set())
        for key, buffer in module._buffers.items():
            if isinstance(buffer, torch.Tensor) and key not in transient:
                sums[f"{path}.{key}"] = checksum(buffer)
    return sums


def checksum(tensor: Any) -> tuple[int, int]:
    """The sum of all bits of a tensor read as whole numbers, and of their squares, modulo 2**64."""
    import torch

    flat = tensor.detach().contiguous().view(-1)
    if flat.dtype is torch.bool:
        flat = flat.to(torch.uint8)
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    whole = flat.view(width[flat.element_size()])
    total = squares = 0
    for start in range(0, whole.numel(), CHUNK):
        part = whole[start : start + CHUNK].to(torch.int64)
        total += int(part.sum())
        squares += int((part * part).sum())
    return total % (1 << 64), squares % (1 << 64)


def changed(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
    """Names whose checksum is another, as the user knows them."""
    return [clean_path(name) for name, value in before.items() if after.get(name, value) != value]


def save_and_reload(model: Any, base: Any) -> tuple[Any, list[str]]:
    """Save the adapters of ``model`` and load them onto ``base``; the new model and PEFT's warnings.

    Raises what PEFT raises.
    """
    import warnings

    import peft

    with (
        tempfile.TemporaryDirectory(prefix="lora-doctor-") as folder,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        model.save_pretrained(folder)
        reloaded = peft.PeftModel.from_pretrained(base, folder)
    told = [" ".join(str(item.message).split())[:200] for item in caught]
    return reloaded, [text for text in told if "missing" in text or "config file" in text]


def merge_layer_by_layer(model: Any, batch: Any, layers: list[Any]) -> tuple[float, str]:
    """The largest relative difference that merging makes to the output of a single layer.

    For models too large to copy: each adapted layer is copied alone, merged, and run on the input
    that it gets in one forward. Returns the difference and the layer's path.
    """
    worst, worst_path = 0.0, ""
    handles = []

    def hook_of(path: str) -> Any:
        def hook(module: Any, inputs: Any, named: Any, output: Any) -> None:
            nonlocal worst, worst_path
            twin = copy.deepcopy(module)
            twin._forward_hooks.clear()
            twin.merge()
            difference = compare(list(_floats(output)), list(_floats(twin(*inputs, **named))))
            value = difference.relative if difference.comparable else float("inf")
            if value >= worst:
                worst, worst_path = value, path

        return hook

    for layer in layers:
        if hasattr(layer.module, "merge"):
            handles.append(layer.module.register_forward_hook(hook_of(layer.path), with_kwargs=True))
    try:
        outputs_of(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return worst, worst_path


def _floats(value: Any) -> Iterator[Any]:
    for tensor in tensors_in(value):
        if tensor.is_floating_point():
            yield tensor.float()


def tied_to_others(model: Any, layers: list[Any]) -> list[str]:
    """Adapted layers whose weight is also another module's: merging into one changes the other."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(clean_path(name))
    adapted = {layer.path for layer in layers if hasattr(layer.module, "merge")}
    return sorted(
        path
        for names in owners.values()
        if len(names) > 1
        for path in {name.rpartition(".")[0] for name in names} & adapted
    )
