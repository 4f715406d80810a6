"""What is measured on a model: losses, outputs and how far they lie apart, checksums of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lora_doctor.contract.locator import tensors_in
from lora_doctor.model.peft_models import adapters_off
from lora_doctor.nn import wrapper_tensors
from lora_doctor.nn.copying import seed_everything
from lora_doctor.text import clean_path
from lora_doctor.tiny_model.batch.run_forward import CACHE_NAMES

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
    """What the model answers in eval mode: its logits, else every floating output but the loss."""
    with evaluating(model):
        seed_everything(0)
        result = model(**batch.inputs)
    logits: Any = getattr(result, "logits", None)
    if logits is not None and hasattr(logits, "is_floating_point"):
        return [logits.float()]
    if hasattr(result, "keys"):
        result = {key: result[key] for key in result if key not in ("loss", *CACHE_NAMES)}
    return [tensor.float() for tensor in tensors_in(result) if tensor.is_floating_point()]


def without_labels(model: Any, batch: Any) -> Any:
    """The batch as somebody sends it who wants an answer and no loss; ``None`` where it has no
    labels. What a decoder makes of the labels stays its input."""
    labels = batch.inputs.get("labels")
    if labels is None:
        return None
    inputs = {name: value for name, value in batch.inputs.items() if name != "labels"}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    shifted = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    if callable(shifted) and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = shifted(labels=labels)
    return replace(batch, inputs=inputs)


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
        largest, other = _largest(one), _largest(two)
        if not (is_finite(largest) and is_finite(other)):
            both = torch.isfinite(one) & torch.isfinite(two)
            if not torch.equal(torch.isfinite(one), torch.isfinite(two)) or not bool(both.any()):
                return Difference(0.0, 0.0, False, "outputs are not finite")
            one, two = one[both], two[both]
            largest = _largest(one)
        absolute = max(absolute, _largest(one - two))
        scale = max(scale, largest)
    return Difference(absolute, absolute / scale if scale else absolute)


def _largest(tensor: Any) -> float:
    """The largest absolute value; NaN where one element is NaN. One pass and no copy: the logits of
    a real vocabulary are most of what a comparison takes."""
    low, high = map(float, tensor.aminmax())
    return low if low != low else max(-low, high)  # NaN alone is unequal to itself


def frozen_sums(model: Any) -> dict[str, tuple[int, int]]:
    """A checksum of every parameter that must not move and of every persistent buffer.

    Running statistics (batch norm) and buffers that are not saved (position tables) change by
    design and are left out.
    """
    sums = {
        name: checksum(parameter)
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    return sums | buffer_sums(model)


def buffer_sums(model: Any) -> dict[str, tuple[int, int]]:
    """Of :func:`frozen_sums`, those of the buffers."""
    import torch

    sums = {}
    for path, module in model.named_modules():
        if getattr(module, "track_running_stats", False):
            continue
        transient: set[str] = getattr(module, "_non_persistent_buffers_set", set())
        for key, buffer in module._buffers.items():
            if isinstance(buffer, torch.Tensor) and key not in transient:
                sums[f"{path}.{key}"] = checksum(buffer)
    return sums


def checksum(tensor: Any) -> tuple[int, int]:
    """The sum of all bits of a tensor read as whole numbers, and of their squares, modulo 2**64."""
    import torch

    if wrapper_tensors.is_made_of_others(tensor):
        sums = [checksum(inner) for inner in wrapper_tensors.inner_tensors(tensor)]
        return sum(one for one, _ in sums) % (1 << 64), sum(two for _, two in sums) % (1 << 64)
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


def loss_of(model: Any, batch: Any) -> Any:
    """The scalar loss of a batch, with gradients."""
    from lora_doctor.tiny_model.batch.loss import batch_loss

    return batch_loss(model, batch)


def measured_loss(model: Any, batch: Any, *, adapters: bool = True) -> float:
    """The loss in eval mode with a fixed seed; without ``adapters`` that of the base model.

    Of a model in half precision it is taken from the same outputs in float32: what many classes
    return has three digits in bfloat16, and a loss that falls by less would be called flat.
    """
    off: Any = contextlib.nullcontext() if adapters else adapters_off(model)
    # PEFT makes adapters trainable when it turns them on again, frozen ones too.
    trainable = [(p, p.requires_grad) for p in model.parameters()]
    with evaluating(model), off, _losses_in_float32(model):
        seed_everything(0)
        loss = float(loss_of(model, batch))
    for parameter, wanted in trainable:
        if parameter.requires_grad != wanted:
            parameter.requires_grad_(wanted)
    return loss


def _losses_in_float32(model: Any) -> Any:
    """A context in which torch's loss functions compute in float32 what a half model hands them."""
    import torch
    from torch.overrides import TorchFunctionMode

    half = (torch.float16, torch.bfloat16)

    class Unrounded(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), named: Any = None
        ) -> Any:
            name = getattr(func, "__name__", "")
            if name.endswith(("loss", "cross_entropy")):
                args = [a.float() if getattr(a, "dtype", None) in half else a for a in args]
            return func(*args, **(named or {}))

    is_half = any(parameter.dtype in half for parameter in model.parameters())
    return Unrounded() if is_half else contextlib.nullcontext()


def is_finite(number: float) -> bool:
    return number - number == 0


def is_discrete(batch: Any) -> bool:
    """Whether a batch holds no floating numbers: made-up tokens are as good as real ones where it
    is sizes that count, made-up sound is not."""
    return not any(tensor.is_floating_point() for tensor in tensors_in(batch.inputs))


def kind_of(batch: Any) -> str:
    """What a batch exercises, such as ``image+text``."""
    return "+".join(sorted(batch.modality)) or "other"
