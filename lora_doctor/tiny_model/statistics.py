"""Running statistics of batch norms that fit a model with random weights.

A checkpoint's statistics are those of its own activations. A model that was just made has mean 0
and variance 1, whatever its weights: in eval mode a deep net of convolutions then fades to zero,
layer by layer, and a loss that is measured so is flat whatever is learnt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_FORWARDS = 2


def fit_statistics(model: Any, batch: Any) -> None:
    """Set the running statistics to those of a batch; no other weight is touched.

    ``batch``: a :class:`~.batch.result.Batch` that the model takes, or ``None``.
    """
    import torch

    from lora_doctor.nn.copying import attributes_kept

    norms = [
        module for module in model.modules() if getattr(module, "running_mean", None) is not None
    ]
    if not norms or batch is None:
        return
    with (
        attributes_kept(model),
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        _averaging(norms),
    ):
        torch.manual_seed(0)
        for _ in range(_FORWARDS):
            model(**batch.inputs)


@contextlib.contextmanager
def _averaging(norms: list[Any]) -> Iterator[None]:
    """In training mode, with the plain mean over forwards in the place of a slowly moving one."""
    before = [(norm, getattr(norm, "momentum", None), norm.training) for norm in norms]
    for norm in norms:
        if hasattr(norm, "momentum"):
            norm.momentum = None
        if hasattr(norm, "reset_running_stats"):
            norm.reset_running_stats()
        norm.train()
    try:
        yield
    finally:
        for norm, momentum, training in before:
            if hasattr(norm, "momentum"):
                norm.momentum = momentum
            norm.train(training)
