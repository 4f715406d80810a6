"""The memory plan: against a real run, against real quantization, and what it does not know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from benchmarks import memory_plan
from lora_doctor.errors import InputError
from lora_doctor.memory_plan.alternatives import alternatives
from lora_doctor.recipe.memory_size import parse_memory
from lora_doctor.recipe.recipe import Recipe, make_recipe
from lora_doctor.reports import render
from lora_doctor.results.memory_plan import MemoryPart, MemoryPlan, MemoryVariant
from lora_doctor.sandbox.worker import Worker
from lora_doctor.text import GIB

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: 68 M parameters.
LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 16000,
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6,
    "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 1024,
}  # fmt: skip


def llama_folder(folder: Path, **changes: Any) -> str:
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return str(folder)


def plan_of(model: str, values: dict[str, Any]) -> MemoryPlan:
    """The plan, made in this process."""
    from lora_doctor.memory_plan.gather import gather

    kind = "factory" if ":" in model else "folder"
    source = {"kind": kind, "name": model, "folder": model, "trust_remote_code": False}
    recipe = make_recipe({"task_type": "CAUSAL_LM", **values}, where="test", origin="argument")
    return MemoryPlan.from_json(json.loads(json.dumps(gather(source, recipe.to_json()))))


def size_of(variant: MemoryVariant, *names: str) -> int:
    found = [part.bytes for part in variant.parts if part.name in names]
    assert len(found) == len(names) and None not in found, variant
    return sum(size or 0 for size in found)


# --- against reality ---

REAL_RUN = """
import ctypes, gc, json, sys
import peft, torch
from transformers import AutoConfig, AutoModelForCausalLM

folder, dtype, checkpointing, size, length, targets = json.loads(sys.argv[1])
torch.set_num_threads(1)
# As on a GPU, where dropout keeps one byte for each element; the CPU keeps the factors.
torch.nn.functional.dropout = lambda x, p, training, inplace=False: torch.native_dropout(
    x, p, training
)[0]
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
model = model.to(getattr(torch, dtype))
config = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_dropout=0.05, target_modules=targets)
model = peft.get_peft_model(model, config)
if checkpointing:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
model.train()

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def step(size, length):
    ids = torch.randint(3, 1000, (size, length))
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()

step(1, 8)  # what is loaded and allocated once
model.zero_grad(set_to_none=True)
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = status("VmRSS")
step(size, length)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize(("dtype", "checkpointing"), [("bfloat16", False), ("float32", True)])
def test_a_real_step_takes_what_the_plan_says(
    tmp_path: Path, dtype: str, checkpointing: bool
) -> None:
    """A model of 68 M parameters really trained on the CPU: the growth of resident memory is that
    of the plan within 5 % (0.8 % at most when it was written, on all of the four combinations)."""
    folder = llama_folder(tmp_path)
    plan = plan_of(
        folder,
        {
            "r": 16, "lora_dropout": 0.05, "target_modules": ALL_LINEAR, "dtype": dtype,
            "per_device_train_batch_size": 4, "max_length": 256,
            "gradient_checkpointing": checkpointing,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        },
    )  # fmt: skip
    told = size_of(plan.recipe, "activations", "logits, loss, backward", "gradients")
    arguments = json.dumps([folder, dtype, checkpointing, 4, 256, ALL_LINEAR])
    # Every block of its own, so that what is freed is given back.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REAL_RUN, arguments], capture_output=True, text=True, timeout=500,
        check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert told == pytest.approx(int(done.stdout.split()[-1]), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["1b bf16", "1b fp32", "8b 8-bit, checkpointing"])
def test_the_plan_is_the_peak_that_was_measured_on_a_gpu(case: str, worker: Worker) -> None:
    """Rows of tests/data/memory_on_a_gpu.json; benchmarks/memory_plan.py has all of them, and
    docs/gpu.md says which are further off."""
    import transformers

    if int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("measured on transformers 5.23: older releases repeat grouped keys themselves")
    row = next(row for row in memory_plan.rows() if row["case"] == case)
    plan = memory_plan.plan_of(row, worker)
    peak = memory_plan.peak_of(plan, row.get("outliers"))
    assert peak == pytest.approx(row["peak"], rel=memory_plan.TARGET)
    assert plan.recipe.low <= row["reserved"] * GIB <= (plan.recipe.high or 0)


def kept_by(function: Callable[[Any], Any], value: Any) -> int:
    """Bytes that are alive on meta after a function, beside its input and output."""
    from lora_doctor.memory_plan.gpu_kernels import kernels_of_a_gpu
    from lora_doctor.memory_plan.live_tensors import LiveBytes

    live = LiveBytes("meta", [value])
    with kernels_of_a_gpu(), live.watching():
        output = function(value)
        return live.alive_at(live.forward_is_over()) - output.untyped_storage().nbytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dropout_keeps_one_byte_for_each_element_as_on_a_gpu(dtype: str) -> None:
    import torch

    value = torch.empty(64, 32, dtype=getattr(torch, dtype), device="meta", requires_grad=True)
    dropped = kept_by(lambda x: torch.nn.functional.dropout(x, 0.5, True), value)
    assert dropped == 64 * 32
    assert kept_by(lambda x: torch.nn.functional.dropout(x, 0.5, False), value) <= 0


def test_grouped_keys_in_float32_leave_the_plain_attention() -> None:
    """A GPU shares keys between heads in the flash kernel only, which takes no float32: what is
    left keeps a matrix of length times length for every head."""
    import torch

    attention = torch.nn.functional.scaled_dot_product_attention
    heads, length, width = 8, 128, 16
    if "enable_gqa" not in (attention.__doc__ or ""):
        pytest.skip("this torch does not share keys between heads")

    def kept(dtype: Any, key_heads: int) -> int:
        def attend(query: Any) -> Any:
            key = torch.empty(1, key_heads, length, width, dtype=dtype, device="meta")
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, key, is_causal=True, enable_gqa=key_heads != heads
            )

        shape = (1, heads, length, width)
        return kept_by(attend, torch.empty(shape, dtype=dtype, device="meta", requires_grad=True))

    matrix = heads * length * length * 4
    assert kept(torch.float32, 2) > matrix > kept(torch.float32, heads)
    assert kept(torch.bfloat16, 2) < matrix / 4


@pytest.mark.parametrize("double", [True, False])
def test_quantized_sizes_are_those_of_real_quantization(double: bool) -> None:
    """bitsandbytes quantizes on meta to the same sizes as on the CPU."""
    import bitsandbytes as bnb
    import torch

    from lora_doctor.memory_plan.quantized import _in_4_bits, constants

    def layer(device: str) -> Any:
        return bnb.nn.Linear4bit(
            384, 640, bias=False, compress_statistics=double, quant_type="nf4", device=device
        )

    planned, real = layer("meta"), layer("cpu")
    _in_4_bits(planned)
    packed, state = bnb.functional.quantize_4bit(
        torch.randn(640, 384), blocksize=64, compress_statistics=double, quant_type="nf4"
    )
    real.weight = bnb.nn.Params4bit(packed, quant_state=state, requires_grad=False)
    assert planned.weight.numel() == packed.numel() == 640 * 384 // 2
    planned_sizes = sorted((one.numel(), one.element_size()) for one in constants(planned))
    assert planned_sizes == sorted((one.numel(), one.element_size()) for one in constants(real))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_thinned_layers_count_as_all_of_them(tmp_path: Path, checkpointing: bool) -> None:
    """Two of sixteen layers are run; what is counted is that of all sixteen, byte for byte."""
    from lora_doctor.memory_plan.footprint import MetaModel
    from lora_doctor.memory_plan.thinned_model import runnable
    from lora_doctor.model.loading import Loader
    from lora_doctor.model.meta_copy import meta_copy

    folder = llama_folder(tmp_path, num_hidden_layers=16)
    values = {
        "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "dtype": "float32",
        "gradient_checkpointing": checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }  # fmt: skip
    recipe = make_recipe(values, where="test", origin="argument")
    source = {"kind": "folder", "name": folder, "folder": folder, "trust_remote_code": False}
    model = Loader(source, recipe).build("meta").float()
    run = runnable(model, recipe, 2, 64, "float32")
    assert run.thinned.repeats
    thin = MetaModel(run.thinned, recipe, None, "float32")
    whole = MetaModel(meta_copy(model), recipe, None, "float32")
    assert {k: v.bytes for k, v in thin.weights().items()} == {
        k: v.bytes for k, v in whole.weights().items()
    }
    one, all_of_them = (
        subject.step(run.batch.inputs, run.batch.loss_of) for subject in (thin, whole)
    )
    assert one.kept == pytest.approx(all_of_them.kept, rel=0.002)
    assert one.peak == pytest.approx(all_of_them.peak, rel=0.002)


def test_the_optimizer_is_asked() -> None:
    """AdamW keeps two numbers in the weight's own dtype, SGD none, 8 bits a quarter of it."""
    import torch

    from lora_doctor.memory_plan.optimizer import state_bytes

    trained = [(torch.nn.Parameter(torch.empty(64, 128, device="meta")), 3)]
    count = 64 * 128 * 3
    assert state_bytes(trained, "adamw_torch") == 8 * count
    assert state_bytes(trained, "sgd") == 0
    assert 2 * count <= state_bytes(trained, "adamw_8bit") < 2.5 * count
    with pytest.raises(ValueError, match="no_such"):
        state_bytes(trained, "no_such")


# --- numbers that the model asks for ---


def test_questions_about_inputs_are_answered_on_meta() -> None:
    """What hangs on the inputs is known; what hangs on weights is said to be unknown."""
    import torch

    from lora_doctor.memory_plan.data_dependent_ops import (
        KnownValues,
        UnknownValue,
        running_on_meta,
    )

    values = KnownValues()
    weight = torch.empty(10, 4, device="meta")
    with running_on_meta(values):
        ids = values.to_meta(torch.tensor([[1, 7, 7, 2]]))
        assert bool((ids > 0).all()) and int((ids == 7).sum()) == 2
        assert (ids == 7).nonzero().shape == (2, 2)
        assert torch.nn.functional.embedding(ids, weight)[ids == 7].shape == (2, 4)
        assert torch.tensor([2, 3], device="meta").tolist() == [2, 3]
        assert not values.spread
        with pytest.raises(UnknownValue):
            bool(weight.sum() > 0)
        chosen = torch.topk(torch.nn.functional.embedding(ids, weight), 2, dim=-1).indices
        assert torch.bincount(chosen.flatten(), minlength=4).tolist() == [2, 2, 2, 2]
    assert values.spread


# --- what is told ---


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * GIB), ("24 GiB", 24 * GIB), (24, 24 * GIB), ("24000MB", 24000 << 20),
     ("0.5t", GIB << 9)],
)  # fmt: skip
def test_sizes_as_people_write_them(text: object, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "-8GB", "0", "8KB", "nan", True, "1e400GB"])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError):
        parse_memory(text)
    with pytest.raises(InputError, match="memory_budget"):
        make_recipe({"memory_budget": text}, where="recipe", origin="file")


def test_a_missing_part_makes_a_lower_bound() -> None:
    """Never a total, and never a fit."""
    known = MemoryPart("weights, not quantized", 10 * GIB, "", "counted")
    one = MemoryVariant(
        "recipe", {}, (known, MemoryPart("activations", None, "a reason", "missing"))
    )
    assert one.total is None and one.high is None and one.low == 10 * GIB
    assert one.fits(80 * GIB) is None and one.fits(8 * GIB) is False


def test_batch_size_and_length_are_never_touched() -> None:
    """Checkpointing is tried first, then fewer bits."""
    found = alternatives(Recipe(), "bfloat16", can_checkpoint=True, can_quantize=True)
    assert [one.name for one in found] == [
        "gradient checkpointing", "8-bit", "8-bit, gradient checkpointing", "4-bit",
        "4-bit, gradient checkpointing",
    ]  # fmt: skip
    four = Recipe({"load_in_4bit": True, "gradient_checkpointing": True})
    found += alternatives(four, "bfloat16", can_checkpoint=True, can_quantize=True)
    assert found[5].changes == {"bnb_4bit_use_double_quant": True}
    touched = {key for one in found for key in one.changes}
    assert not touched & {"per_device_train_batch_size", "max_length", "r"}


def looks_at_numbers() -> Any:
    """A model that branches on its own activations, so that no meta run gets through it."""
    import torch
    from torch import nn

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(512, 512)

        def forward(self, x: Any) -> Any:
            hidden = self.proj(x)
            return hidden if hidden.mean() > 0 else -hidden

    return Branching(), {"x": torch.randn(2, 512)}


def test_what_cannot_be_measured_is_missing_with_its_reason() -> None:
    values = {"target_modules": ["proj"], "task_type": None, "memory_budget": "8GB"}
    plan = plan_of(f"{__name__}:looks_at_numbers", values)
    assert [part.name for part in plan.recipe.missing] == ["activations"]
    assert "hangs on weights" in plan.recipe.missing[0].formula
    assert plan.recipe.fits(8 * GIB) is None
    assert size_of(plan.recipe, "weights, not quantized") == (512 * 512 + 512) * 4


@pytest.mark.slow
def test_the_rule_does_not_pass_what_it_does_not_know(worker: Worker) -> None:
    diagnosis = lora_doctor.check(
        f"{__name__}:looks_at_numbers", {"target_modules": ["proj"], "memory_budget": "8GB"},
        depth="meta", worker=worker,
    )  # fmt: skip
    skipped = {item.rule: item.reason for item in diagnosis.skipped}
    assert "is unknown" in skipped["LD704"] and "LD704" not in diagnosis.passed


@pytest.mark.slow
def test_without_a_budget_nothing_is_measured_or_said(worker: Worker) -> None:
    """The default check must not get slower."""
    diagnosis = lora_doctor.check("arch:gpt2", None, depth="meta", worker=worker)
    assert "LD704" in diagnosis.passed and diagnosis.memory_plan is None
    assert "memory_plan" not in {item.name for item in diagnosis.gathered}


@pytest.mark.slow
def test_the_plan_is_shown_when_it_is_asked_for(worker: Worker) -> None:
    """With formulas and sources, in every format for people, and in the JSON with its sums."""
    recipe = {"per_device_train_batch_size": 2, "max_length": 128, "optim": "sgd"}
    diagnosis = lora_doctor.check("arch:gpt2", recipe, depth="meta", memory=True, worker=worker)
    plan = diagnosis.memory_plan
    assert plan is not None and plan.length == 128 and plan.batch_size == 2
    assert size_of(plan.recipe, "optimizer state") == 0
    for text in (render(diagnosis, "full", width=120), render(diagnosis, "html")):
        assert "Memory on one GPU" in text and "4-bit, gradient checkpointing" in text
        assert "CUDA context" in text and "assumed" in text
    data = json.loads(render(diagnosis, "json"))["memory_plan"]
    assert data["recipe"]["low"] <= data["recipe"]["total"] <= data["recipe"]["high"]
    assert set(data["recipe"]["fits"]) == {"8", "16", "24", "48", "80"}
