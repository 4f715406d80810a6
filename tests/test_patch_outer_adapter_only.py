"""An adapter on top of built-in ones: trained alone, on an unchanged model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.prescription import patches
from lora_doctor.recipe.edit import Patch
from tests.models import headless_llama, llama_with_own_adapters

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


@pytest.fixture
def patched() -> Iterator[None]:
    undo = patches.install(Patch("outer_adapter_only"))
    yield
    undo()


def ids() -> Any:
    return torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))


def outer(targets: list[str]) -> Any:
    return peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["o_proj"], ["v_proj", "up_proj"]])
def test_only_the_new_adapter_learns_and_the_model_starts_as_it_was(
    patched: None, targets: list[str], tmp_path: Path
) -> None:
    """In the same layers, in others, and in both; after saving and loading too."""
    model = llama_with_own_adapters().eval()
    model.lm_head.requires_grad_(True)  # left trainable by the model: not asked for
    before = model(input_ids=ids()).logits
    wrapped = peft.get_peft_model(model, outer(targets))
    trainable = [name for name, value in wrapped.named_parameters() if value.requires_grad]
    assert trainable and all(".default." in name for name in trainable)
    wrapped.eval()
    assert torch.equal(wrapped(input_ids=ids()).logits, before)
    wrapped(input_ids=ids(), labels=ids()).loss.backward()
    with torch.no_grad():
        for value in wrapped.parameters():
            if value.requires_grad:
                assert value.grad is not None
                value.add_(0.05)
    learnt = wrapped(input_ids=ids()).logits
    assert not torch.equal(learnt, before)
    wrapped.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(llama_with_own_adapters(), tmp_path).eval()
    assert torch.allclose(again(input_ids=ids()).logits, learnt, atol=1e-6)
    assert not any(value.requires_grad for value in again.parameters())


def test_a_model_without_adapters_is_left_to_peft(patched: None) -> None:
    wrapped = peft.get_peft_model(headless_llama(), peft.LoraConfig(target_modules=["q_proj"]))
    trainable = {name for name, value in wrapped.named_parameters() if value.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)


def test_the_models_own_wrapping_is_left_to_peft(patched: None) -> None:
    """Its adapters have names of their own."""
    model = llama_with_own_adapters()
    names = {name for name, value in model.named_parameters() if value.requires_grad}
    assert names and all(".speech." in name for name in names)


def test_modules_to_save_stay_trainable(patched: None) -> None:
    config = outer(["q_proj"])
    config.modules_to_save = ["lm_head"]
    wrapped = peft.get_peft_model(llama_with_own_adapters(), config)
    trainable = [name for name, value in wrapped.named_parameters() if value.requires_grad]
    assert any("lm_head.modules_to_save.default" in name for name in trainable)
    assert all(".default." in name for name in trainable)


def test_undone_it_is_gone() -> None:
    original = peft.PeftModel.__init__
    undo = patches.install(Patch("outer_adapter_only"))
    assert peft.PeftModel.__init__ is not original
    undo()
    assert peft.PeftModel.__init__ is original
