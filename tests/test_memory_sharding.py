"""The memory plan of several processes: FSDP's shares as torch makes them, and the brackets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.errors import InputError
from lora_doctor.recipe.recipe import make_recipe
from lora_doctor.results.memory_plan import MemoryPlan
from tests.test_memory_plan import llama_folder, plan_of, size_of

#: Sizes that two do not divide: the first process has more than its half.
SIZES: dict[str, Any] = {
    "vocab_size": 501, "hidden_size": 60, "intermediate_size": 81, "num_hidden_layers": 3,
    "num_attention_heads": 3, "num_key_value_heads": 3,
    # Older releases keep buffers of the square of it, which nobody divides.
    "max_position_embeddings": 32,
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "target_modules": ["q_proj", "down_proj"], "r": 5, "dtype": "float32", "batch_size": 1,
    "max_length": 16,
}  # fmt: skip
NAMES = ("weights, not quantized", "trained weights", "gradients", "optimizer state")

TWO_PROCESSES = """
import json, os, sys
import peft, torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

folder, targets, rank, meeting = json.loads(sys.argv[1])

def local(tensor):
    tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return tensor.numel() * tensor.element_size()

def train(process):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=process, world_size=2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=targets)
    model = peft.get_peft_model(model, config)
    for layer in model.get_base_model().model.layers:
        fully_shard(layer)
    fully_shard(model)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.arange(16).reshape(1, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = sum(local(one.grad) for one in trained)
    optimizer.step()
    state = sum(
        local(value)
        for one in trained
        for name, value in optimizer.state[one].items()
        if name != "step"
    )
    frozen = [one for one in model.parameters() if not one.requires_grad] + list(model.buffers())
    if process == 0:
        sizes = [sum(map(local, frozen)), sum(map(local, trained)), gradients, state]
        print("sizes", json.dumps(sizes), flush=True)
    dist.barrier()
    dist.destroy_process_group()

if os.fork() == 0:
    train(1)
    os._exit(0)
train(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.fixture(scope="module", autouse=True)
def no_alternatives() -> Iterator[None]:
    """They are planned like the recipe, and take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_doctor.memory_plan.gather.alternatives", lambda *_, **__: ())
        yield


def test_the_shares_of_fsdp_are_those_of_two_real_processes(tmp_path: Path) -> None:
    pytest.importorskip("torch.distributed.fsdp", reason="no FSDP")
    from torch.distributed import fsdp as installed

    if not hasattr(installed, "fully_shard"):
        pytest.skip("this torch has no FSDP 2")
    folder = llama_folder(tmp_path, **SIZES)
    plan = plan_of(folder, {**RECIPE, "num_processes": 2, "sharding": "fsdp"})
    given = [folder, RECIPE["target_modules"], RECIPE["r"], str(tmp_path / "meeting")]
    done = subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES, json.dumps(given)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout.partition("sizes ")[2])
    assert [size_of(plan.recipe, name) for name in NAMES] == measured
    alone = plan_of(folder, RECIPE)
    assert 2 * size_of(plan.recipe, NAMES[1]) > size_of(alone.recipe, NAMES[1])


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MemoryPlan]:
    """The same recipe on four processes, by kind of sharding."""
    folder = llama_folder(tmp_path_factory.mktemp("llama"), **{**SIZES, "num_hidden_layers": 8})
    four = {**RECIPE, "num_processes": 4}
    found = {kind: plan_of(folder, {**four, "sharding": kind}) for kind in ("ZeRO-2", "zero3")}
    found["fsdp"] = plan_of(folder, {**four, "sharding": "fsdp"})
    found["ddp"] = plan_of(folder, four)
    found["alone"] = plan_of(folder, {**RECIPE, "sharding": "fsdp"})
    return found


def test_what_each_kind_of_sharding_divides(plans: dict[str, MemoryPlan]) -> None:
    sizes = {kind: [size_of(one.recipe, name) for name in NAMES] for kind, one in plans.items()}
    assert sizes["ddp"] == sizes["alone"]
    assert sizes["ZeRO-2"][:2] == sizes["alone"][:2]
    for kind, divided in (("ZeRO-2", 2), ("zero3", 0), ("fsdp", 0)):
        for whole, share in zip(sizes["alone"][divided:], sizes[kind][divided:], strict=True):
            assert whole / 4 <= share < whole / 3, kind


def test_what_is_gathered_is_said_and_bracketed(plans: dict[str, MemoryPlan]) -> None:
    """Outside the blocks of this Llama are its embeddings, its head and the last norm."""
    outside = (2 * 501 * 60 + 60) * 4
    block = (4 * 60 * 60 + 3 * 60 * 81 + 2 * 60 + 5 * (60 + 60) + 5 * (81 + 60)) * 4
    (part,) = (one for one in plans["fsdp"].recipe.parts if one.name == "gathered weights")
    assert (part.low, part.bytes, part.high) == (
        outside + block, outside + 2 * block, outside + 3 * block,
    )  # fmt: skip
    (zero,) = (one for one in plans["zero3"].recipe.parts if one.name == "gathered weights")
    # All of it is below DeepSpeed's limit on what may be gathered at once.
    assert zero.low == 501 * 60 * 4 and zero.high == outside + 8 * block


def test_the_plan_says_what_it_is_of(plans: dict[str, MemoryPlan]) -> None:
    assert plans["zero3"].place == "each of 4 GPUs, ZeRO-3"
    assert plans["ddp"].place == "each of 4 GPUs, DDP" and plans["alone"].place == "one GPU"
    assert "were not measured" in plans["zero3"].assumptions[0]
    assert ["fsdp divides nothing without num_processes" in note.text for note in
            plans["alone"].notes] == [True]  # fmt: skip
    again = MemoryPlan.from_json(json.loads(json.dumps(plans["zero3"].to_json())))
    assert again == plans["zero3"]


def test_deepspeed_casts_the_adapters_too(tmp_path: Path) -> None:
    """With its ``bf16`` there is no autocast; the optimizer has a copy in float32."""
    plan = plan_of(
        llama_folder(tmp_path, **SIZES),
        {**RECIPE, "num_processes": 2, "sharding": "zero2", "dtype": "bfloat16", "bf16": True},
    )
    trained, master = (
        size_of(plan.recipe, "trained weights"),
        size_of(plan.recipe, "master weights"),
    )
    assert "bfloat16" in next(p.formula for p in plan.recipe.parts if p.name == "trained weights")
    # Half of the elements, each twice as wide.
    assert trained <= master <= trained + 4
    assert size_of(plan.recipe, "optimizer state") == 2 * master


def test_quantized_weights_may_not_be_divided(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = llama_folder(tmp_path, **SIZES)
    four = {**RECIPE, "load_in_4bit": True, "num_processes": 2}
    alone, shared = (
        next(
            one for one in plan_of(folder, recipe).recipe.parts if one.name == "weights, quantized"
        )
        for recipe in (four, {**four, "sharding": "zero3"})
    )
    assert (alone.low, alone.high) == (None, None)  # DDP divides nothing
    assert shared.low == shared.bytes and shared.high == alone.bytes
    assert shared.bytes is not None and alone.bytes is not None
    assert alone.bytes / 2 <= shared.bytes < alone.bytes * 2 / 3


def test_a_kind_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="must be one of zero1, zero2, zero3, fsdp"):
        make_recipe({"sharding": "zero9"}, where="test", origin="argument")
