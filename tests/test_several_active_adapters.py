"""Two adapters that are active together come back together from their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import saved_adapters as made


@pytest.mark.parametrize("first", ["default", "one"])
def test_saved_and_reloaded(first: str, tmp_path: Path) -> None:
    """The contract compares the reloaded model with the trained one: with one adapter of the two
    it would find another model, which is no fault of the user's."""
    peft = pytest.importorskip("peft")
    import torch

    from lora_doctor.contract.saved_files import save_and_reload

    def model() -> object:
        torch.manual_seed(0)
        return made.llama().eval()

    config = made.lora_config(r=4, init_lora_weights=False)
    trained = peft.get_peft_model(model(), config, adapter_name=first)
    trained.add_adapter("two", made.lora_config(r=2, init_lora_weights=False))
    trained.base_model.set_adapter([first, "two"])
    again = save_and_reload(trained.eval(), model(), ("",), tmp_path)
    ids = torch.arange(8).reshape(1, 8)
    assert again.active_adapters == [first, "two"]
    assert torch.allclose(again.eval()(ids).logits, trained(ids).logits, atol=1e-6)
