"""Dtypes of the weights of a module in memory."""

from __future__ import annotations

from typing import Any

HALF = ("float16", "bfloat16")


def dtype_of(model: Any) -> str:
    """The dtype of most floating weights, by name; float32 where there are none."""
    return floating_dtype(model) or "float32"


def floating_dtype(model: Any) -> str | None:
    """The dtype of most floating weights, by name; ``None`` where there are none."""
    sizes: dict[str, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            name = str(parameter.dtype).removeprefix("torch.")
            sizes[name] = sizes.get(name, 0) + parameter.numel()
    return max(sizes, key=lambda name: sizes[name], default=None)


def in_float32(model: Any) -> Any:
    """``model``, a copy of somebody's, with its own weights and buffers in float32 where they were
    in half precision; what is quantized, or a tensor of another kind, stays."""
    import torch

    for parameter in model.parameters():
        if type(parameter) is torch.nn.Parameter:
            parameter.data = to_float32(parameter.data)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = to_float32(buffer)
    return model


def to_float32(value: Any) -> Any:
    """A tensor in half precision in float32; anything else as it is."""
    half = str(getattr(value, "dtype", "")).removeprefix("torch.") in HALF
    return value.float() if half else value
