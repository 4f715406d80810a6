"""Weights in bfloat16 that a step of the optimizer does not change."""

from __future__ import annotations

import torch

from lora_doctor.contract.observers.spacings import _spacings


def test_the_distance_is_what_torch_needs_to_move_a_number() -> None:
    """A little more than half of it changes every number, a little less changes none."""
    torch.manual_seed(0)
    values = torch.randn(1000).to(torch.bfloat16)
    distance = _spacings(values)
    rounded = values.float() + torch.sign(values.float()) * distance * torch.tensor(0.45)
    assert torch.equal(rounded.to(torch.bfloat16), values)
    moved = values.float() + torch.sign(values.float()) * distance * torch.tensor(0.55)
    assert bool((moved.to(torch.bfloat16) != values).all())
    assert float(_spacings(torch.zeros(3, dtype=torch.bfloat16)).max()) == 0


def test_adam_leaves_such_weights_as_they_are() -> None:
    """What the rule says of norms at a usual learning rate, done by torch alone."""
    norm = torch.nn.Parameter(torch.full((64,), 0.8, dtype=torch.bfloat16))
    before, half = norm.detach().clone(), float(_spacings(norm.detach())[0]) / 2
    for rate, stays in ((half * 0.9, True), (half * 1.1, False)):
        optimizer = torch.optim.Adam([norm], lr=rate)
        (norm.float() * 3).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(norm.detach(), before) is stays
