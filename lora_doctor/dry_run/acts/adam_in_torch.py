"""The extensions in C++ that DeepSpeed's Adam optimizers call, in torch: compiling them takes
minutes, and a small model needs no speed."""

from __future__ import annotations

import math
from typing import Any


class _OfCpuAdam:
    """``cpu_adam``: one tensor in each call."""

    def __init__(self) -> None:
        self._decoupled: dict[int, bool] = {}

    def create_adam(self, number: int, *given: Any) -> int:
        """``given``: learning rate, betas, epsilon, weight decay, whether it is AdamW, and more."""
        self._decoupled[number] = bool(given[5])
        return 0

    def destroy_adam(self, number: int) -> int:
        self._decoupled.pop(number, None)
        return 0

    def adam_update(self, number: int, step: int, *given: Any) -> int:
        """``given``: learning rate, betas, epsilon, weight decay, whether the means are corrected;
        values, gradients, mean, mean of squares."""
        lr, beta1, beta2, eps, weight_decay, corrected, values, *others = given
        gradients, mean, square = others
        decay = (weight_decay, self._decoupled.get(number, True))
        tensors = (gradients, values, mean, square)
        _step(tensors, step, (lr, beta1, beta2, eps), decay, bool(corrected))
        return 0


class _OfFusedAdam:
    """``fused_adam``: lists of tensors in one call."""

    @staticmethod
    def multi_tensor_adam(chunk: int, overflow: Any, tensors: Any, *given: Any) -> None:
        """``tensors``: lists of gradients, values, means, means of squares. ``given``: learning
        rate, betas, epsilon, step, whether it is AdamW, whether the means are corrected, weight
        decay."""
        lr, beta1, beta2, eps, step, decoupled, corrected, weight_decay = given
        decay = (weight_decay, bool(decoupled))
        for one in zip(*tensors, strict=True):
            _step(one, step, (lr, beta1, beta2, eps), decay, bool(corrected))


def _step(
    tensors: Any,
    step: int,
    rates: tuple[float, float, float, float],
    decay: tuple[float, bool],
    corrected: bool,
) -> None:
    """One step of Adam in place.

    Args:
        tensors: gradients, values, mean of the gradients, mean of their squares.
        step: its number, from 1.
        rates: learning rate, both betas, epsilon.
        decay: weight decay, and whether it is taken from the values (AdamW) or added to gradients.
        corrected: whether the means are corrected for their start at 0.
    """
    import torch

    gradients, values, mean, square = tensors
    lr, beta1, beta2, eps = rates
    weight_decay, decoupled = decay
    first = 1 - beta1**step if corrected else 1.0
    second = 1 - beta2**step if corrected else 1.0
    with torch.no_grad():
        gradients = gradients.to(mean.dtype)
        if weight_decay and decoupled:
            values.mul_(1 - lr * weight_decay)
        elif weight_decay:
            gradients = gradients + weight_decay * values.to(mean.dtype)
        mean.mul_(beta1).add_(gradients, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        change = mean / (square.sqrt() / math.sqrt(second) + eps)
        values.add_(change.to(values.dtype), alpha=-lr / first)


#: Name of an extension to what stands in for it.
EXTENSIONS: dict[str, Any] = {"cpu_adam": _OfCpuAdam(), "fused_adam": _OfFusedAdam()}
