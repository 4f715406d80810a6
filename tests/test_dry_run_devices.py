"""A machine without a GPU in a dry run: what libraries do for its CPU alone is not done."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.dry_run.acts import devices
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
