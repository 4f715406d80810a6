"""What the backward keeps on a GPU and the meta device does not show by itself: casts of autocast,
and what the 8-bit layers of bitsandbytes hang on the graph."""

from __future__ import annotations

from typing import Any

import pytest


def tiny_llama(device: str, dtype: Any, checkpointing: bool) -> Any:
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=500, max_position_embeddings=128,
    )  # fmt: skip
    config._attn_implementation = "eager"
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype)
        lora = peft.LoraConfig(
            task_type="CAUSAL_LM", r=16, lora_dropout=0.0, target_modules=["q_proj", "down_proj"]
        )
        model = peft.get_peft_model(model, lora)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


@pytest.mark.parametrize(("dtype", "checkpointing"), [("float32", False), ("bfloat16", True)])
def test_autocast_on_meta_keeps_what_real_autocast_keeps(dtype: str, checkpointing: bool) -> None:
    """Byte for byte, on the CPU, whose autocast runs here: copies of weights and inputs in half
    precision, and what checkpointing computes once more."""
    import torch

    from lora_doctor.memory_plan.autocast import Autocast
    from lora_doctor.memory_plan.data_dependent_ops import KnownValues, running_on_meta
    from lora_doctor.memory_plan.live_tensors import LiveBytes

    ids = torch.full((2, 64), 7)
    taken = {}
    for device in ("cpu", "meta"):
        model = tiny_llama(device, getattr(torch, dtype), checkpointing)
        values, mixed = KnownValues(), Autocast("bfloat16", device="cpu")
        on_meta = device == "meta"
        given = values.to_meta(ids) if on_meta else ids
        live = LiveBytes(device, [*model.parameters(), *model.buffers(), given])
        with live.watching():
            if on_meta:
                with running_on_meta(values):
                    with mixed.forward():
                        loss = model(input_ids=given, labels=given).loss
                    end = live.forward_is_over()
                    mixed.backward(loss)
            else:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = model(input_ids=given, labels=given).loss
                end = live.forward_is_over()
                loss.backward()
        taken[device] = live.alive_at(end), live.peak()
    assert taken["meta"] == taken["cpu"]


def test_what_autocast_casts_is_asked_of_the_device_that_will_train() -> None:
    """A GPU raises ``pow`` to float32, a CPU leaves it alone; doubles are never cast."""
    import torch

    from lora_doctor.memory_plan.autocast import Autocast

    half, whole = (
        torch.empty(4, 4, dtype=dtype, device="meta") for dtype in (torch.bfloat16, torch.float32)
    )
    double = torch.empty(4, 4, dtype=torch.float64, device="meta")
    linear = torch.nn.functional.linear

    def made(device: str, function: Any, *args: Any) -> Any:
        with Autocast("bfloat16", device).forward():
            return function(*args).dtype

    for device in ("cuda", "cpu"):
        assert made(device, linear, whole, whole) == torch.bfloat16
        assert made(device, linear, double, double) == torch.float64
        assert made(device, torch.mul, half, whole) == torch.float32
    assert made("cuda", torch.pow, half, 2) == torch.float32
    assert made("cpu", torch.pow, half, 2) == torch.bfloat16
    assert linear(whole, whole).dtype == torch.float32  # and nothing is left behind
    assert not torch.is_autocast_enabled("cuda")


def test_eight_bit_layers_keep_inputs_and_outliers_until_the_loss_is_gone() -> None:
    """The real layer's function, on the CPU: three columns with a 7 in them are kept once more, and
    the end of the backward gives nothing back."""
    import bitsandbytes as bnb
    import torch
    from bitsandbytes.autograd import _functions

    from lora_doctor.memory_plan.live_tensors import LiveBytes

    if not hasattr(torch.ops.bitsandbytes, "int8_mixed_scaled_mm"):
        pytest.skip("this bitsandbytes has no 8-bit product for the CPU")
    weight = torch.randn(32, 64).half()
    packed, scale, _ = bnb.functional.int8_vectorwise_quant(weight)
    state = bnb.MatmulLtState()
    state.CB, state.SCB, state.has_fp16_weights, state.threshold = packed, scale, False, 6.0
    given = torch.zeros(16, 64)
    given[3, [5, 9, 40]] = 7.0
    leaf = given.clone().requires_grad_()
    live = LiveBytes("cpu", [leaf, packed, scale, given])
    with live.watching():
        loss = _functions.MatMul8bitLt.apply(leaf * 1.0, packed, None, None, state).sum()
        loss.backward()
        leaf.grad = None
        held = live.alive_at(live.now())
        del loss
        gone = live.alive_at(live.now())
    assert held - gone == given.numel() * 4 + 3 * 16 * 4 + 4  # the loss is the last four bytes
    assert state.idx is not None and sorted(state.idx.tolist()) == [5, 9, 40]


def test_outliers_are_counted_for_every_8_bit_layer_with_a_threshold() -> None:
    """Each layer has a copy of its own, in the dtype of its input; two of sixteen layers run."""
    import torch
    from torch import nn

    from lora_doctor.memory_plan.eight_bit import EightBitInputs, without_outliers
    from lora_doctor.model.meta_copy import MetaCopy

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state = type("State", (), {"threshold": 6.0})()

        def forward(self, x: Any) -> Any:
            return x

    layers = nn.Sequential(nn.Sequential(Layer()), nn.Sequential(Layer(), Layer()))
    model = nn.Sequential(layers)
    without_outliers(layers[0][0])
    without_outliers(layers[1][0])
    assert layers[0][0].state.threshold == 0.0
    counted = EightBitInputs(model, MetaCopy(model, {"0.1": 15}))
    value = torch.empty(4, 8, dtype=torch.bfloat16, device="meta")
    model(value)
    with torch.no_grad():
        model(value)  # keeps no graph
    counted.forward_is_over()
    model(value)  # computed once more for the backward
    assert counted.bytes == 4 * 8 * 2 * (1 + 15)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_grouped_experts_take_any_dtype_on_meta_as_on_a_device(dtype: str) -> None:
    """k-bit preparation casts the experts of transformers 5 to float32, which the product of groups
    takes everywhere but on meta."""
    import torch

    from lora_doctor.memory_plan.data_dependent_ops import KnownValues, running_on_meta
    from lora_doctor.memory_plan.live_tensors import LiveBytes

    grouped = getattr(torch.nn.functional, "grouped_mm", None)
    if grouped is None:
        pytest.skip("this torch has no product of groups")
    ends = torch.tensor([3, 8], dtype=torch.int32)
    kept = {}
    for device in ("cpu", "meta"):
        tokens = torch.zeros(8, 16, dtype=getattr(torch, dtype), device=device, requires_grad=True)
        weight = torch.zeros(2, 16, 32, dtype=getattr(torch, dtype), device=device)
        values = KnownValues()
        offsets = values.to_meta(ends) if device == "meta" else ends
        live = LiveBytes(device, [tokens, weight, offsets])
        with live.watching(), running_on_meta(values):
            output = grouped(tokens * 1, weight, offs=offsets)
            assert output.shape == (8, 32) and output.dtype == tokens.dtype
            (output * 1).sum().backward()
            kept[device] = live.alive_at(live.now())
        assert tokens.grad is not None and tokens.grad.shape == tokens.shape
    assert kept["meta"] == kept["cpu"]


def test_a_message_on_meta_has_the_numbers_that_are_known() -> None:
    """Batches with images are corrected by messages such as "tokens: 2, features: 3"."""
    import torch

    from lora_doctor.memory_plan.data_dependent_ops import KnownValues, running_on_meta

    values = KnownValues()
    weight = torch.empty(4, device="meta")
    with running_on_meta(values):
        ids = values.to_meta(torch.tensor([1, 7, 7, 2]))
        assert f"tokens: {(ids == 7).sum()}, features: 3" == "tokens: 2, features: 3"
        assert "meta" in f"{weight.sum()}"
    assert f"{torch.tensor(3)}" == "3"
