"""The model's own adapters train, and nothing else of it, however it was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from lora_doctor.prescription import patches
from lora_doctor.recipe.edit import Patch

pytestmark = pytest.mark.slow
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")


class Speaker(transformers.LlamaForCausalLM):  # type: ignore[misc, unused-ignore]
    """Puts adapters into its own inner model while it is being built; the head stays trainable."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
        peft.get_peft_model(self.model, lora, adapter_name="speech")


def config() -> Any:
    return transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Speaker(config()).save_pretrained(tmp_path, safe_serialization=True)
    return tmp_path


@contextmanager
def patched() -> Iterator[None]:
    undo = patches.install(Patch("own_adapters_only"))
    try:
        yield
    finally:
        undo()


def trainable(model: Any) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


def adapters(model: Any) -> set[str]:
    return {name for name, _ in model.named_parameters() if ".speech." in name}


def test_loaded_prepared_and_trained(folder: Path) -> None:
    """Without it the head trains too (or all of it); with it the adapters alone learn."""
    assert trainable(Speaker.from_pretrained(folder)) - adapters(Speaker.from_pretrained(folder))
    original = vars(transformers.PreTrainedModel)["from_pretrained"]
    with patched():
        model = Speaker.from_pretrained(folder)
        assert trainable(model) == adapters(model) != set()
        with_info, _ = Speaker.from_pretrained(folder, output_loading_info=True)
        assert trainable(with_info) == adapters(model)
        prepared = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        assert trainable(prepared) == adapters(prepared)
    assert vars(transformers.PreTrainedModel)["from_pretrained"] is original
    again = Speaker.from_pretrained(folder)
    assert not trainable(
        peft.prepare_model_for_kbit_training(again, use_gradient_checkpointing=False)
    )
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    moved = {name for name, value in model.named_parameters() if (value != before[name]).any()}
    assert moved == adapters(model)


def add_adapter(model: Any, adapter: Any) -> None:
    """`model.add_adapter`, or the two steps of it where transformers wants a newer PEFT for it."""
    wanted = getattr(transformers.integrations.peft, "MIN_PEFT_VERSION", "0")
    if Version(peft.__version__) >= Version(wanted):
        model.add_adapter(adapter)
        return
    with pytest.raises(ValueError, match=wanted):
        model.add_adapter(adapter)
    peft.inject_adapter_in_model(adapter, model)
    model._hf_peft_config_loaded = True


def test_others_are_left_alone(tmp_path: Path) -> None:
    """A model without adapters, and one that transformers has loaded an adapter into."""
    plain = transformers.LlamaForCausalLM(config())
    plain.save_pretrained(tmp_path / "plain", safe_serialization=True)
    with patched():
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "plain")
        everything = {name for name, _ in model.named_parameters()}
        assert trainable(model) == everything
        add_adapter(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
        model.requires_grad_(True)
        assert getattr(model, "_hf_peft_config_loaded", False)
        model.train()
        prepared = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        assert not trainable(prepared)
