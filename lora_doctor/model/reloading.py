"""Whether the installed PEFT finds adapters again under the names that it saves them by.

transformers 5 renames the weights of old checkpoints while it loads them, and PEFT 0.21 runs saved
adapters through the same renames. Those are written for old names, and some of them match the new
names too (``layers.`` -> ``language_model.layers.``): such an adapter is loaded under a name that
no layer has, which is a warning, and starts at zero again.

Runs where torch and PEFT are imported; PEFT is asked, on tensors without data.
"""

from __future__ import annotations

import importlib
import itertools
import warnings
from dataclasses import dataclass
from typing import Any

from lora_doctor.model.module_path import pattern_of
from lora_doctor.results.injection import RenamedTensor
from lora_doctor.text import clean_path

_MARK = ".lora_"


@dataclass(frozen=True)
class NotReloaded:
    """``patterns`` of layers (parameters as ``module.parameter``) whose adapters are not found
    again; ``example``: one of their tensors."""

    patterns: tuple[str, ...] = ()
    example: RenamedTensor | None = None


def not_reloaded(wrapped: Any, adapter: str) -> NotReloaded:
    """What would be missing if the LoRA adapter of this ``PeftModel`` were saved and loaded now.

    ``wrapped`` may be on the meta device; the adapter's weights are written to themselves.
    """
    import peft

    try:
        importlib.import_module("peft.utils.transformers_weight_conversion")
    except ImportError:  # this PEFT, or this transformers, renames nothing
        return NotReloaded()
    if getattr(wrapped.peft_config.get(adapter), "peft_type", None) != "LORA":
        return NotReloaded()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = peft.get_peft_model_state_dict(
            wrapped, adapter_name=adapter, save_embedding_layers=False
        )
        try:
            result = peft.set_peft_model_state_dict(wrapped, saved, adapter_name=adapter)
        except Exception:  # noqa: BLE001 - it may need real numbers; the round trip then tells
            return NotReloaded()
    missing = [name for name in result.missing_keys if _MARK in name and f".{adapter}" in name]
    patterns = dict.fromkeys(pattern_of(_layer(wrapped, name)) for name in missing)
    unexpected = [_in_the_file(name, adapter) for name in result.unexpected_keys if _MARK in name]
    example = None
    if missing and unexpected:
        first = _in_the_file(missing[0], adapter)
        example = RenamedTensor(first, _nearest(first, unexpected))
    return NotReloaded(tuple(patterns), example)


def _in_the_file(name: str, adapter: str) -> str:
    """An adapter file does not have the adapter's name in those of its tensors."""
    before, mark, behind = name.rpartition(_MARK)
    return before + mark + behind.replace(f".{adapter}", "", 1)


def _layer(wrapped: Any, name: str) -> str:
    """Path of the layer, or of the parameter, that has the adapter tensor of this name."""
    path = name.rpartition(_MARK)[0]
    parameter = getattr(wrapped.get_submodule(path), "parameter_name", None)
    clean = clean_path(path)
    return f"{clean}.{parameter}" if isinstance(parameter, str) else clean


def _nearest(name: str, others: list[str]) -> str:
    """The one of the other names that shares the longest end with this one."""

    def shared(other: str) -> int:
        pairs = zip(reversed(name), reversed(other), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    return max(others, key=shared)
