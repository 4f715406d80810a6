"""An adapter comes back under the name that it was saved by, renames of old checkpoints or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_doctor.prescription import patches
from lora_doctor.recipe.edit import Patch

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")


def base() -> Any:
    torch.manual_seed(0)
    return transformers.LagunaForCausalLM(
        transformers.LagunaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
            shared_expert_intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        )
    ).eval()  # fmt: skip


def shared_experts(model: Any) -> dict[str, Any]:
    """The factors B of the adapters that the rename hits; they are zero in a new adapter."""
    return {
        name: value
        for name, value in model.named_parameters()
        if "shared_expert" in name and "lora_B" in name
    }


@pytest.mark.skipif(not hasattr(transformers, "LagunaConfig"), reason="no Laguna here")
def test_saved_adapters_of_shared_experts_come_back_with_the_patch_alone(tmp_path: Path) -> None:
    model = peft.get_peft_model(base(), peft.LoraConfig(target_modules=["q_proj", "up_proj"]))
    trained = shared_experts(model)
    assert trained
    for value in trained.values():
        torch.nn.init.ones_(value)
    model.save_pretrained(str(tmp_path))

    with pytest.warns(UserWarning, match="missing adapter keys"):
        plain = peft.PeftModel.from_pretrained(base(), str(tmp_path))
    assert all(not value.any() for value in shared_experts(plain).values())

    undo = patches.install(Patch("saved_names_stay"))
    try:
        loaded = peft.PeftModel.from_pretrained(base(), str(tmp_path))
    finally:
        undo()
    found = shared_experts(loaded)
    assert found.keys() == trained.keys()
    assert all(bool((value == 1).all()) for value in found.values())


def test_names_that_the_model_does_not_have_are_renamed_as_before(tmp_path: Path) -> None:
    """Adapters from before transformers 5 are why PEFT renames at all."""
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    make = transformers.LlamaForCausalLM
    model = peft.get_peft_model(make(config), peft.LoraConfig(target_modules=["q_proj"]))
    state = peft.get_peft_model_state_dict(model)
    state = {name: torch.ones_like(value) for name, value in state.items()}
    other = {name.replace("self_attn", "attention"): value for name, value in state.items()}
    undo = patches.install(Patch("saved_names_stay"))
    try:
        result = peft.set_peft_model_state_dict(model, {**state, **other})
    finally:
        undo()
    assert not [name for name in result.missing_keys if "lora_" in name]
    assert len([name for name in result.unexpected_keys if "lora_" in name]) == len(other)
