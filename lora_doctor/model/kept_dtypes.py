"""Modules of a saved adapter that PEFT's ``low_cpu_mem_usage`` leaves in the dtype of the file.

Runs in a child process; torch and PEFT are imported inside functions.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

from lora_doctor.results.adapter_loading import KeptDtype
from lora_doctor.text import one_line


def kept_dtypes(wrapped: Any, adapter: str) -> Iterator[KeptDtype]:
    """Those of a PEFT model on the meta device whose dtype is not that of the module which they
    stand in for."""
    kind = importlib.import_module("peft.utils.other").ModulesToSaveWrapper
    for path, module in wrapped.get_base_model().named_modules():
        if not isinstance(module, kind) or adapter not in module.modules_to_save:
            continue
        saved = module.modules_to_save[adapter]
        own, base = _dtype(saved), _dtype(module.original_module)
        if own is None or base is None or own == base:
            continue
        yield KeptDtype(path, type(saved).__name__, _name(own), _name(base), _raised(saved, base))


def _dtype(module: Any) -> Any:
    """That of all its floating parameters; ``None`` where it has none, or several."""
    found = {one.dtype for one in module.parameters() if one.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _raised(module: Any, dtype: Any) -> str:
    """What the module, or a linear layer after it, raises on the CPU when the model's own dtype
    arrives; empty for a class of which it is not known what it takes."""
    import torch

    with torch.no_grad(), torch.device("cpu"):
        if type(module) is torch.nn.Linear:
            small = torch.nn.Linear(2, 2).to(_dtype(module))
            return _error(small, torch.ones(1, 2, dtype=dtype))
        if type(module) is torch.nn.Embedding:
            small = torch.nn.Embedding(2, 2).to(_dtype(module))
            # Residuals add both dtypes up, and the next linear layer has the model's.
            result = small(torch.zeros(1, dtype=torch.long))
            linear = torch.nn.Linear(2, 2).to(dtype)
            return _error(linear, result + torch.ones(1, 2, dtype=dtype))
        weights = [one for one in module.parameters() if one.dim() == 1]
        if len(weights) != len(list(module.parameters())) or not weights:
            return ""
        twin = copy.deepcopy(module).to_empty(device="cpu")
        linear = torch.nn.Linear(weights[0].numel(), 2).to(dtype)
        inputs = torch.ones(1, weights[0].numel(), dtype=dtype)
        return _error(torch.nn.Sequential(twin, linear), inputs)


def _error(module: Any, inputs: Any) -> str:
    try:
        module(inputs)
    except RuntimeError as error:
        return one_line(error, 200)
    return ""
