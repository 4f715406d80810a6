"""Kernels that a framework puts in the place of a layer's forward, where no GPU can run them.

axolotl does so by itself with LoRA without dropout. What its kernels compute is what the layer
computes, so the layer runs as transformers wrote it, and the run is not proven for the kernel.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting

#: The one of its kernels that is written in Triton; the others are matrix products of torch.
_SETTING = "lora_mlp_kernel"


def prepare(acting: Acting) -> None:
    """Once axolotl has the function that sets its kernels in."""
    acting.after("axolotl.monkeypatch.lora_kernels", lambda module: _left_out(acting, module))


def _left_out(acting: Acting, module: ModuleType) -> None:
    name = "apply_lora_kernel_patches"
    if not callable(vars(module).get(name)):
        return

    def patched(original: Any, model: Any, cfg: Any) -> Any:
        import torch

        if torch.cuda.is_available() or not cfg.get(_SETTING):
            return original(model, cfg)
        acting.note("not-proven", f"{_SETTING} of axolotl needs a GPU; the layers ran without it")
        asked = cfg[_SETTING]
        cfg[_SETTING] = False
        try:
            return original(model, cfg)
        finally:
            cfg[_SETTING] = asked

    acting.replaced.around(module, name, patched)
