"""Reentrant checkpointing that waits for itself is stopped; other backwards are as they were."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils import checkpoint  # noqa: E402

from lora_doctor.contract.recomputing import (  # noqa: E402
    EndlessRecomputation,
    ended_where_it_begins_again,
)


class Layer(torch.nn.Module):
    """Makes a bias, or takes the one that a layer before it has made, and hands it on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, hidden: Any, bias: Any = None) -> Any:
        bias = self.linear.weight.sum() if bias is None else bias
        return torch.tanh(self.linear(hidden)) + bias, bias


def loss_of(layers: Any, *, by_keyword: bool) -> Any:
    hidden, bias = torch.ones(2, 4, requires_grad=True), None
    for layer in layers:
        given = () if by_keyword else (bias,)
        call = partial(layer, bias=bias) if by_keyword else layer
        hidden, bias = checkpoint.checkpoint(call, hidden, *given, use_reentrant=True)
    return hidden.sum()


def test_a_layer_that_needs_its_own_backward_is_told() -> None:
    """Without the guard this hangs: WavLM hands its position bias on by keyword."""
    layers = [Layer(), Layer()]
    before = checkpoint.CheckpointFunction.backward
    with ended_where_it_begins_again(), pytest.raises(EndlessRecomputation, match="without end"):
        loss_of(layers, by_keyword=True).backward()
    assert checkpoint.CheckpointFunction.backward is before


def test_other_checkpointing_gives_the_same_gradients() -> None:
    """Nested layers and a second backward of the same model are no circle."""
    layers = [Layer(), Layer(), Layer()]

    def gradients() -> list[Any]:
        for layer in layers:
            layer.zero_grad()
        loss_of(layers, by_keyword=False).backward()
        return [layer.linear.weight.grad.clone() for layer in layers]

    plain = gradients()
    with ended_where_it_begins_again():
        for _ in range(2):
            assert all(map(torch.equal, gradients(), plain))
