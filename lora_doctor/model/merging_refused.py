"""What PEFT raises when adapters are merged into the layers of a quantization.

Runs in a child process; torch and PEFT are imported inside functions.
"""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

from lora_doctor.model.error_reports import library_error
from lora_doctor.model.modules import is_adapter_layer
from lora_doctor.results.error_report import ErrorReport

#: What a message names where only this device lacks something.
_DEVICE = re.compile(r"cpu|cuda|gpu|meta|device", re.IGNORECASE)


def merging_refused(wrapped: Any, replaced: frozenset[type]) -> ErrorReport | None:
    """The exception, where an adapter on a layer of one of these classes cannot be merged, on
    whatever device; ``None`` also where that was not found out.

    Args:
        wrapped: a PEFT model on the meta device.
        replaced: classes of the layers that the quantizer has put in. Not those that it only
            changed: compressed-tensors unpacks their weights at the first forward.
    """
    for layer in _smallest(wrapped, replaced):
        error = _raised(copy.deepcopy(layer).to_empty(device="cpu"))
        if error is not None and not _DEVICE.search(str(error)):
            return library_error(error)
    return None


def _smallest(wrapped: Any, replaced: frozenset[type]) -> list[Any]:
    """One adapted layer for each class and kind of adapter, the one with the fewest numbers."""
    found: dict[tuple[type, type], Any] = {}
    for module in wrapped.modules():
        base = getattr(module, "base_layer", None)
        if not is_adapter_layer(module) or base is None or type(base) not in replaced:
            continue
        if base is None or "weight" not in dict(base.named_parameters(recurse=False)):
            continue
        kind = type(module), type(base)
        if kind not in found or _numbers(module) < _numbers(found[kind]):
            found[kind] = module
    return [layer for layer in found.values() if hasattr(layer, "merge")]


def _numbers(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _raised(layer: Any) -> Exception | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            layer.merge()
        except Exception as error:  # noqa: BLE001 - what it raises is the answer
            return error
    return None
