"""Tensors of which each process holds a part."""

from __future__ import annotations

from typing import Any


def held_here(tensor: Any) -> Any:
    """The part of a tensor that this process holds; the tensor itself where it is whole. Nothing is
    asked of other processes."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
