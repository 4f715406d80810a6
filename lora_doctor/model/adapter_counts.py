"""What is in a wrapped model: its adapters, and what would be trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_doctor.model.meta_copy import MetaCopy
from lora_doctor.model.module_path import pattern_of
from lora_doctor.model.modules import elements, is_adapter_layer, walk
from lora_doctor.model.peft_models import other_parts


def base_of(wrapped: Any) -> Any:
    """The model that a wrapper of PEFT's was put around."""
    if hasattr(wrapped, "get_base_model"):
        return wrapped.get_base_model()
    return getattr(getattr(wrapped, "base_model", None), "model", wrapped)  # a mixed model's


class Counts:
    """What is in a wrapped model: adapters, and everything that would be trained."""

    def __init__(
        self, wrapped: Any, thinned: MetaCopy, config: Any, adapters: tuple[str, ...]
    ) -> None:
        self.names = adapters
        base = base_of(wrapped)
        self.adapted: dict[str, int] = {}
        self.adapter = self.trainable = self.total = 0
        self.trainable_adapter = self.trainable_other = 0
        self.other: list[str] = []
        keep_bias = getattr(config, "bias", "none") != "none"
        ours, saved = adapter_parameters(wrapped, adapters)
        for path, module, _ in walk(base):
            self._adapters_of(path, module, thinned)
        prefix = next((f"{path}." for path, item in wrapped.named_modules() if item is base), "")
        for name, value in wrapped.named_parameters():
            inside = name.startswith(prefix)
            path = name.removeprefix(prefix) if inside else name
            size = elements(value) * (thinned.times(path) if inside else 1)
            self.total += size
            is_ours = id(value) in ours or not inside
            self.adapter += size if is_ours else 0
            if not value.requires_grad:
                continue
            self.trainable += size
            self.trainable_adapter += size if is_ours else 0
            wanted = is_ours or id(value) in saved or (keep_bias and "bias" in name)
            if not wanted:
                self.trainable_other += size
                pattern = pattern_of(path.replace(".base_layer", ""))
                if pattern not in self.other:
                    self.other.append(pattern)

    def _adapters_of(self, path: str, module: Any, thinned: MetaCopy) -> None:
        """Note what this module carries: nested parameter wrappers are one module."""
        while is_adapter_layer(module):
            if _has_adapter(module, self.names):
                parameter = getattr(module, "parameter_name", None)
                key = f"{path}.{parameter}" if parameter else path
                self.adapted[key] = thinned.times(path)
            module = module.base_layer


def _has_adapter(layer: Any, names: Sequence[str]) -> bool:
    for attribute in layer.adapter_layer_names:
        held = getattr(layer, attribute, None)
        if held is not None and hasattr(held, "keys") and any(name in held for name in names):
            return True
    return False


def adapter_parameters(model: Any, names: Sequence[str]) -> tuple[set[int], set[int]]:
    """Ids of the parameters of these adapters, and of the modules that are saved with them."""
    ours: set[int] = set()
    saved: set[int] = set()
    for module in model.modules():
        if is_adapter_layer(module):
            for attribute in module.adapter_layer_names:
                held: Any = getattr(module, attribute, None)
                for name in names if hasattr(held, "keys") else ():
                    if name in held:
                        ours.update(_ids(held[name]))
        copies: Any = getattr(module, "modules_to_save", None)
        if hasattr(module, "original_module") and hasattr(copies, "keys"):
            for key in copies:
                saved.update(_ids(copies[key]))
    for _, part in other_parts(model):
        ours.update(id(value) for value in part.parameters() if value.requires_grad)
    return ours, saved


def _ids(held: Any) -> set[int]:
    if hasattr(held, "parameters"):
        return {id(value) for value in held.parameters()}
    return {id(held)}
