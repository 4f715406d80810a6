"""Weights that the checkpoint lacks, followed through PEFT: which of them an adapter folder holds.

Runs in the process that holds the model; may be on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.contract.adapters import auxiliary_classes, tuner_layer_class
from lora_doctor.model.module_path import pattern_of
from lora_doctor.results.loading import Unsaved

#: Where PEFT's layers, and its copies of whole modules, keep what they stand in the place of.
_OF_WRAPPERS = ("base_layer", "original_module")


class RandomWeights:
    """The parameters of a base model that its checkpoint lacks, followed through its adapters.

    Args:
        base: without adapters, which change it in place; or with them already.
        missing: name of each, and whether it is drawn anew at every loading.
    """

    def __init__(self, base: Any, missing: Mapping[str, bool]) -> None:
        self._missing = missing
        self._parameters = parameters_of_base(base) if missing else {}
        # PEFT trains and saves no container: it has no forward.
        self._containers = {
            _plain(path) for path, module in _root(base).named_modules()
            if not _has_forward(module)
        } if missing else set()  # fmt: skip

    def unsaved(self, model: Any) -> Unsaved:
        """What of them is drawn anew, not trained and not saved once ``model`` has its adapters.

        What is trained and not saved is another failure. A module in ``modules_to_save`` is trained
        as a copy; adapters on a layer are saved, its own weights are not.
        """
        copied = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, auxiliary_classes())
            for parameter in module.parameters()
        }
        lost = {
            name
            for name in self._missing
            if name in self._parameters
            and not self._parameters[name].requires_grad
            and id(self._parameters[name]) not in copied
        }
        random = {name for name in lost if self._missing[name]}
        if not random:
            return Unsaved()
        modules = [path for path in self._whole(lost) if _any_inside(random, path)]
        rest = [name for name in sorted(random) if not any(map(_inside(name), modules))]
        return Unsaved(
            modules=tuple(modules),
            others=tuple(dict.fromkeys(map(pattern_of, rest))),
            parameters=sum(int(self._parameters[name].numel()) for name in random),
            of=sum(int(parameter.numel()) for parameter in self._parameters.values()),
        )

    def _whole(self, names: set[str]) -> list[str]:
        """Paths of the largest modules with a forward, all of whose parameters are among these."""
        flags: dict[str, bool] = {}
        for name in self._parameters:
            parts = name.split(".")[:-1]
            for end in range(1, len(parts) + 1):
                path = ".".join(parts[:end])
                flags[path] = flags.get(path, True) and name in names
        whole: list[str] = []
        for path, good in sorted(flags.items()):  # a module before those inside it
            outer = any(path.startswith(f"{other}.") for other in whole)
            if good and path not in self._containers and not outer:
                whole.append(path)
        return whole


def parameters_of_base(model: Any) -> dict[str, Any]:
    """The parameters of a model by the names that they have without adapters; those of adapters are
    left out."""
    root = _root(model)
    wrappers = tuple(
        f"{path}."
        for path, module in root.named_modules()
        if isinstance(module, (tuner_layer_class(), *auxiliary_classes()))
    )
    return {
        _plain(name): parameter
        for name, parameter in root.named_parameters()
        if not name.startswith(wrappers) or _plain(name) != name
    }


def _root(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _plain(path: str) -> str:
    """A path without what PEFT's wrappers put into it."""
    return ".".join(part for part in path.split(".") if part not in _OF_WRAPPERS)


def _has_forward(module: Any) -> bool:
    import torch

    return not isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict))


def _any_inside(names: set[str], path: str) -> bool:
    return any(name.startswith(f"{path}.") for name in names)


def _inside(name: str) -> Any:
    return lambda path: name.startswith(f"{path}.")
