"""Tensors of which each process holds a part."""

from __future__ import annotations

from typing import Any


def held_here(tensor: Any) -> Any:
    """The part of a tensor that this process holds, of FSDP 2 or ZeRO-3; the tensor itself where it
    is whole. Nothing is asked of other processes."""
    if hasattr(tensor, "ds_tensor"):
        return tensor.ds_tensor
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
