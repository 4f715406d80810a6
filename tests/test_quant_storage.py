"""Four bits in a floating storage dtype (``bnb_4bit_quant_storage``), as FSDP needs them."""

from __future__ import annotations

import pytest

from lora_doctor.contract.observers.updates import _weight


def test_the_weight_is_read_as_it_computes() -> None:
    """Its bytes, read as bfloat16, have any size."""
    torch = pytest.importorskip("torch")
    bitsandbytes = pytest.importorskip("bitsandbytes")
    integrations = pytest.importorskip("peft.utils.integrations")
    if not hasattr(integrations, "dequantize_module_weight"):
        pytest.skip("this PEFT dequantizes no weights")
    values = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_storage=torch.bfloat16)
    layer.weight = bitsandbytes.nn.Params4bit(
        values, requires_grad=False, quant_type="nf4", quant_storage=torch.bfloat16, module=layer
    )
    layer = layer.to("cpu")
    assert layer.weight.is_floating_point() and layer.weight.shape != values.shape
    torch.testing.assert_close(_weight(layer), values, atol=0.2, rtol=0)
