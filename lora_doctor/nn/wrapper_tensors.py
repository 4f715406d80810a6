"""Tensors that are made of others: weights that torchao and Quanto have quantized are one tensor to
the model, with a floating dtype, and hold packed numbers and their scales inside."""

from __future__ import annotations

from typing import Any


def is_made_of_others(tensor: Any) -> bool:
    """Whether it is such a tensor: its own numbers cannot be looked at, those inside can."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return bool(is_traceable_wrapper_subclass(tensor))


def inner_tensors(tensor: Any) -> list[Any]:
    """The tensors that it is made of, in the order in which its class names them."""
    names, _ = tensor.__tensor_flatten__()
    found: list[Any] = []
    for name in names:
        inner = getattr(tensor, name)
        found += inner_tensors(inner) if is_made_of_others(inner) else [inner]
    return found


def holds_any(model: Any) -> bool:
    """Whether a weight of the model is such a tensor."""
    return any(is_made_of_others(weight) for weight in model.parameters())
