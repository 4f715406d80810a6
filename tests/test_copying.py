"""What a forward leaves behind is put back: attributes, and the hooks that they stand for."""

from __future__ import annotations

import warnings
from typing import Any

from lora_doctor.nn.copying import attributes_kept
from lora_doctor.nn.rebinding import deep_copy


def test_hooks_of_a_forward_go_with_the_mark_that_they_are_there() -> None:
    """transformers 5 marks a model whose hooks it has installed. With the mark gone and the hooks
    still there, it installs them twice, and a LLaVA finds no hidden states."""
    from torch import nn

    model = nn.Sequential(nn.Linear(2, 2))
    kept = model[0].register_forward_hook(lambda *_: None)

    def first_forward(module: Any) -> None:
        module.register_forward_hook(lambda *_: None)
        module.marked = True

    with attributes_kept(model):
        first_forward(model[0])
    assert not hasattr(model[0], "marked")
    assert list(model[0]._forward_hooks) == [kept.id]


def test_a_weight_that_is_computed_before_each_forward_is_copied_as_it_is() -> None:
    """Speech models (SEW before transformers 4.44) norm a weight in a hook and leave the result on
    the module, with its history; copying such a model used to end the whole check."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prefers another form of it
        model = torch.nn.utils.weight_norm(torch.nn.Linear(3, 2))
    given = torch.randn(1, 3)
    put_out = model(given)
    twin = deep_copy(model)
    assert torch.equal(twin(given), put_out)
    twin.weight_g.data *= 2
    assert not torch.equal(twin(given), put_out)
    assert torch.equal(model(given), put_out)
