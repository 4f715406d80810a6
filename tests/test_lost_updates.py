"""Weights in bfloat16 that a step of the optimizer does not change."""

from __future__ import annotations

import pytest
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


def test_magnitudes_beside_matrices_are_read_apart() -> None:
    """TRL casts DoRA's magnitudes to bfloat16 with the matrices, which start near zero."""
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    from lora_doctor.contract.adapters import find_adapters
    from lora_doctor.contract.observers.base import Setting
    from lora_doctor.contract.observers.spacings import Spacings

    if "use_dora" not in peft.LoraConfig.__dataclass_fields__:
        pytest.skip("this PEFT has no DoRA")
    sizes = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    model = peft.get_peft_model(
        LlamaForCausalLM(sizes), peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    observer = Spacings(Setting(True, "bfloat16", "bfloat16", 2e-4))
    observer.before_step(find_adapters(model))
    matrices, magnitudes = sorted(observer.readings(), key=lambda one: one.part)
    assert (matrices.part, magnitudes.part) == ("", "lora_magnitude_vector")
    assert matrices.spacing == 0 and magnitudes.spacing > 4e-4
    assert magnitudes.parameters == 64
