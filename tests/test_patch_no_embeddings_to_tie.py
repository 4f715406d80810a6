"""Models without token embeddings that tie other weights: adapters can be put on all the same."""

from __future__ import annotations

from typing import Any

import pytest

from lora_doctor.prescription import patches
from lora_doctor.recipe.edit import Patch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

NOTHING_TIED = Patch("no_embeddings_to_tie")


class Detector(transformers.PreTrainedModel):  # type: ignore[misc, unused-ignore]
    """Two heads with one weight, and no tokens; as RT-DETR has them."""

    config_class = transformers.PretrainedConfig

    def __init__(self) -> None:
        super().__init__(transformers.PretrainedConfig(tie_word_embeddings=True))
        self.layer = torch.nn.Linear(8, 8)
        self.first, self.second = torch.nn.Linear(8, 2), torch.nn.Linear(8, 2)
        self.second.weight = self.first.weight
        self._tied_weights_keys = {"second.weight": "first.weight"}

    def forward(self, pixel_values: Any) -> Any:
        hidden = self.layer(pixel_values)
        return self.first(hidden) + self.second(hidden)


def adapted() -> Any:
    return peft.get_peft_model(Detector(), peft.LoraConfig(target_modules=["layer"]))


def asks() -> bool:
    """Whether the installed PEFT asks for the embeddings of such a model."""
    try:
        adapted()
    except NotImplementedError:
        return True
    return False


def test_adapters_can_be_put_on_and_the_way_back_is_whole() -> None:
    """Without the patch nobody can adapt RT-DETR with this PEFT; without undo it would stay."""
    if not asks():
        pytest.skip("this PEFT does not ask")
    undo = patches.install(NOTHING_TIED)
    try:
        model = adapted()
        loss = model(torch.randn(2, 8)).pow(2).mean()
        loss.backward()
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert trained and all("lora_" in name for name in trained)
    finally:
        undo()
    assert asks()


def test_embeddings_that_are_there_are_still_asked_for() -> None:
    """PEFT's care for tied embeddings must not be lost on models that have them."""
    if not hasattr(peft.tuners.tuners_utils.BaseTuner, "_get_module_names_tied_with_embedding"):
        pytest.skip("this PEFT does not ask")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    lora = peft.LoraConfig(target_modules=["q_proj"])

    def tied() -> list[str]:
        model = peft.get_peft_model(transformers.LlamaForCausalLM(config), lora)
        return list(model.base_model._get_module_names_tied_with_embedding())

    before = tied()
    undo = patches.install(NOTHING_TIED)
    try:
        assert tied() == before
    finally:
        undo()
