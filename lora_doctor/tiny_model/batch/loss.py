"""The loss of a batch: the model's own, or one made from its outputs."""

from __future__ import annotations

from typing import Any

from lora_doctor.tiny_model.batch.result import Batch, BatchError

_FILLED = -1e4  # the lowest value of an output is no result from here on, but fills a mask


def batch_loss(model: Any, batch: Batch) -> Any:
    """The scalar loss of `batch` under `model` (or a wrapper around it), with gradients.

    Raises:
        BatchError: neither a loss nor a floating point output.
    """
    outputs = model(**batch.inputs)
    loss = output_loss(outputs) if batch.loss != "surrogate" else None
    return loss if loss is not None else surrogate_loss(outputs)


def output_loss(outputs: Any) -> Any:
    """The loss among the outputs as a scalar, or None."""
    import torch

    loss = outputs.get("loss") if hasattr(outputs, "get") else getattr(outputs, "loss", None)
    if isinstance(loss, dict):
        loss = sum(v for v in loss.values() if isinstance(v, torch.Tensor))
    if isinstance(loss, torch.Tensor) and loss.is_floating_point():
        return loss.mean()
    return None


def surrogate_loss(outputs: Any) -> Any:
    """Mean squared distance of the floating point outputs from fixed patterns of their shapes.

    Of all of them, because which one the adapters reach is not seen without gradients. Not the
    distance from zero, because the output of a LayerNorm has the same square whatever it learns.

    Raises:
        BatchError: the outputs hold no floating point tensor.
    """

    tensors = list(floating_tensors(outputs))
    if not tensors:
        raise BatchError(
            f"{type(outputs).__name__} holds no floating point tensor to make a loss from"
        )
    return sum(_distance(tensor) for tensor in tensors) / len(tensors)


def _distance(tensor: Any) -> Any:
    import torch

    positions = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
    apart = tensor.float() - torch.sin(positions.float())
    lowest = tensor.detach().min()
    if bool(lowest.isfinite()) and float(lowest) <= _FILLED:  # where something is masked
        shown = tensor.detach() != lowest
        apart = apart[shown] if bool(shown.any()) else apart
    return apart.pow(2).mean()


def floating_tensors(outputs: Any) -> Any:
    """Floating point tensors in the outputs, but for masks, which hold minus infinity."""
    import torch

    if isinstance(outputs, torch.Tensor):
        if outputs.is_floating_point() and outputs.numel() and not bool(outputs.isneginf().any()):
            yield outputs
    elif isinstance(outputs, dict):
        for key, value in outputs.items():
            if key != "loss":
                yield from floating_tensors(value)
    elif isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from floating_tensors(value)
