"""What a forward leaves behind is put back: attributes, and the hooks that they stand for."""

from __future__ import annotations

from typing import Any

from lora_doctor.copying import attributes_kept


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
