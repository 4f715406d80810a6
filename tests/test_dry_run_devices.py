"""A machine without a GPU in a dry run: what libraries do for its CPU alone is not done."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers.utils import import_utils

from lora_doctor.dry_run.acts import devices, gpu_facts, triton_kernels
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.session import Session


def test_4_bit_weights_are_not_repacked_for_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes does so in evaluation, on CPUs with bfloat16, and fails at small widths."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    if not hasattr(modules, "has_avx512bf16"):
        pytest.skip("this bitsandbytes repacks nothing")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    acting = Acting(Session(tmp_path, ""))
    devices.not_repacked(acting, modules)
    try:
        assert not modules.Linear4bit(96, 64).support_avx512bf16_for_cpu
    finally:
        acting.replaced.undo()
    assert modules.Linear4bit(96, 64).support_avx512bf16_for_cpu


@pytest.mark.parametrize("gpu", [False, True])
def test_a_framework_takes_the_half_precision_of_the_real_run(
    gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """axolotl made float16 of ``bf16: auto`` here, and LLaMA-Factory refused ``pure_bf16``: both
    ask transformers, which asks the GPU that this machine lacks. A GPU that is there answers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *arguments, **named: False)
    acting = Acting(Session(tmp_path, ""))
    acting.session.records.mkdir()
    asked = import_utils.is_torch_bf16_gpu_available
    getattr(asked, "cache_clear", lambda: None)()
    gpu_facts._bfloat16(acting, import_utils)
    try:
        assert import_utils.is_torch_bf16_gpu_available() is not gpu
        notes = [one["text"] for one in acting.seen("note")]
        told = "this machine has no GPU: tests is told of one with bfloat16"
        assert notes == ([] if gpu else [told])
    finally:
        acting.replaced.undo()
        getattr(asked, "cache_clear", lambda: None)()


@pytest.mark.parametrize("gpu", [False, True])
def test_a_triton_kernel_of_axolotl_is_left_out_without_a_gpu(
    gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It switches them on by itself, and no CPU runs them: the run ended in our own question."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    library = ModuleType("axolotl.monkeypatch.lora_kernels")
    vars(library)["apply_lora_kernel_patches"] = lambda model, cfg: dict(cfg)
    acting = Acting(Session(tmp_path, ""))
    acting.session.records.mkdir()
    triton_kernels._left_out(acting, library)
    asked = {"lora_mlp_kernel": True, "lora_o_kernel": True}
    done = library.apply_lora_kernel_patches(model=None, cfg=asked)
    assert done == {"lora_mlp_kernel": gpu, "lora_o_kernel": True}
    assert asked["lora_mlp_kernel"] is True
    assert len(acting.seen("note")) == (not gpu)
