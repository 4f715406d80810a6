"""A model may write into embeddings whose gradient was asked for, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest

from lora_doctor.prescription import patches
from lora_doctor.recipe.edit import Patch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(12).reshape(1, 12)
LEAF = "leaf Variable that requires grad"


def frozen_model() -> Any:
    """Adds positions to its embeddings in place; nothing of it takes a gradient."""

    class InPlace(transformers.LlamaForCausalLM):  # type: ignore[misc, unused-ignore]
        def forward(self, input_ids: Any, **kwargs: Any) -> Any:
            embeddings = self.get_input_embeddings()(input_ids)
            embeddings += torch.linspace(0, 1, embeddings.shape[-1])
            return super().forward(inputs_embeds=embeddings, **kwargs)

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return InPlace(config).requires_grad_(False).eval()


def test_the_same_logits_and_a_gradient_for_the_layers_behind() -> None:
    expected = frozen_model()(TOKENS).logits
    plain = frozen_model()
    plain.enable_input_require_grads()
    with pytest.raises(RuntimeError, match=LEAF):
        plain(TOKENS)

    undo = patches.install(Patch("embeddings_are_no_leaves"))
    try:
        model = frozen_model()
        model.enable_input_require_grads()
        logits = model(TOKENS).logits
        assert logits.requires_grad and torch.equal(logits, expected)
    finally:
        undo()
    with pytest.raises(RuntimeError, match=LEAF):
        model(TOKENS)
    again = frozen_model()
    again.enable_input_require_grads()
    with pytest.raises(RuntimeError, match=LEAF):
        again(TOKENS)
