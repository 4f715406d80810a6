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
