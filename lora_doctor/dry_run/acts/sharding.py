"""What wraps the model where several processes train it; and the model as it was before it was cut
into shards, for the training contract and for what a saved adapter is to have."""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import processes
from lora_doctor.dry_run.acts.acting import Acting


def prepare(acting: Acting) -> None:
    """Once torch has what wraps models."""
    acting.after("torch.nn.parallel.distributed", lambda m: _replicas(acting, m))
    acting.after(
        "torch.distributed.fsdp.fully_sharded_data_parallel", lambda m: _flat_shards(acting, m)
    )
    acting.after("torch.distributed.fsdp._init_utils", lambda m: _given_on(acting, m))
    acting.after("torch.distributed.fsdp.api", lambda m: _whole_states(acting, m))
    for name in (
        "torch.distributed.fsdp._fully_shard._fully_shard",
        "torch.distributed._composable.fsdp.fully_shard",
    ):
        acting.after(name, lambda m: _shards(acting, m))
    acting.after("accelerate.accelerator", lambda m: _prepared(acting, m))
    acting.after("accelerate.utils.dataclasses", lambda m: _settings(acting, m))


class Unsharded:
    """Models with adapters of this process, and copies of them from before they were sharded."""

    def __init__(self) -> None:
        self._models: weakref.WeakSet[Any] = weakref.WeakSet()
        self._copies: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        #: Class of a module that became a shard of its own, to how many did.
        self.classes: Counter[str] = Counter()

    def add(self, model: Any) -> None:
        """That this model has adapters."""
        self._models.add(model)

    def models(self) -> list[Any]:
        """The models with adapters."""
        return list(self._models)

    def of(self, model: Any) -> Any:
        """The copy of a model that was sharded; the model itself where it was not, and ``None``
        where this process never had all of its weights."""
        return self._copies.get(model, model)

    def keep(self, module: Any) -> None:
        """Copy the model with adapters that this module is a part of, before it is sharded."""
        parts = list(module.modules())
        for model in list(self._models):
            if model in self._copies:
                continue
            if any(one is module for one in model.modules()) or any(one is model for one in parts):
                whole = not any(one.is_meta for one in model.parameters())
                self._copies[model] = _copied(model) if whole else None

    @property
    def trained(self) -> Any:
        """The copy of the model that was sharded first; ``None`` where there is none."""
        return next((one for one in self._copies.values() if one is not None), None)


def _copied(model: Any) -> Any:
    """A copy, without the forward that accelerate has put on the object: it would call the one of
    the original."""
    own = vars(model)
    wrapped = {name: own.pop(name) for name in ("forward", "_original_forward") if name in own}
    try:
        return copy.deepcopy(model)
    finally:
        own.update(wrapped)


_kept: weakref.WeakKeyDictionary[Acting, Unsharded] = weakref.WeakKeyDictionary()


def unsharded(acting: Acting) -> Unsharded:
    """Those of this process."""
    return _kept.setdefault(acting, Unsharded())


def tell(acting: Acting, kind: str, **values: Any) -> None:
    """What wraps the model in this process now."""
    acting.journal.tell("wrapped", by=kind, rank=processes.rank(), **values)


def _no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _cpu() -> Any:
    """What FSDP takes, while it refuses a model on a CPU where no device is named; ``cpu:0``, which
    accelerate names, is another one to it."""
    import torch

    return torch.device("cpu")


def _replicas(acting: Acting, module: ModuleType) -> None:
    def made(original: Any, wrapper: Any, model: Any, *arguments: Any, **named: Any) -> None:
        if _no_gpu():  # devices by number are those of GPUs
            arguments = arguments[2:]
            named.pop("device_ids", None)
            named.pop("output_device", None)
        original(wrapper, model, *arguments, **named)
        tell(
            acting,
            "DDP",
            find_unused=bool(getattr(wrapper, "find_unused_parameters", False)),
            static_graph=bool(getattr(wrapper, "static_graph", False)),
        )

    acting.replaced.around(module.DistributedDataParallel, "__init__", made)


def _flat_shards(acting: Acting, module: ModuleType) -> None:
    depth = [0]

    def made(original: Any, wrapper: Any, model: Any, *arguments: Any, **named: Any) -> None:
        if acting.in_contract:
            original(wrapper, model, *arguments, **named)
            return
        found = unsharded(acting)
        if not depth[0]:
            with acting.ours():
                found.keep(model)
        if _no_gpu():
            named["device_id"] = _cpu()
        depth[0] += 1
        try:
            original(wrapper, model, *arguments, **named)
        finally:
            depth[0] -= 1
        found.classes[type(model).__name__] += 1
        if not depth[0]:
            tell(acting, "FSDP", classes=dict(found.classes))

    acting.replaced.around(module.FullyShardedDataParallel, "__init__", made)


def _given_on(acting: Acting, module: ModuleType) -> None:
    """FSDP gives the first process's weights to the others on GPUs only; gloo can do it on CPUs."""
    name = "_check_module_states_for_sync_module_states"
    if name not in vars(module):
        return

    def checked(original: Any, *arguments: Any, **named: Any) -> None:
        if not _no_gpu():
            original(*arguments, **named)

    acting.replaced.around(module, name, checked)


def _whole_states(acting: Acting, module: ModuleType) -> None:
    """FSDP copies the tensors of a full state dict only where they stay on their device: moved from
    a CPU "to the CPU" they are views of memory that is freed (a segmentation fault)."""
    if "FullStateDictConfig" not in vars(module):
        return

    def assign(config: Any, name: str, value: Any) -> None:  # accelerate assigns it once more
        value = False if name == "offload_to_cpu" and _no_gpu() else value
        object.__setattr__(config, name, value)

    acting.replaced.add(module.FullStateDictConfig, "__setattr__", assign)


def _shards(acting: Acting, module: ModuleType) -> None:
    if "fully_shard" not in vars(module):
        return

    def sharded(original: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        found = unsharded(acting)
        if acting.in_contract or isinstance(model, (list, tuple)):
            return original(model, *arguments, **named)
        with acting.ours():
            found.keep(model)
        name = type(model).__name__
        result = original(model, *arguments, **named)
        found.classes[name] += 1
        tell(acting, "FSDP2", classes=dict(found.classes))
        return result

    acting.replaced.around(module, "fully_shard", sharded)


def _prepared(acting: Acting, module: ModuleType) -> None:
    """accelerate takes the weights out of a model before it shards it."""
    if "fsdp2_prepare_model" not in vars(module):
        return

    def prepared(original: Any, accelerator: Any, model: Any, *more: Any, **named: Any) -> Any:
        with acting.ours():
            unsharded(acting).keep(model)
        return original(accelerator, model, *more, **named)

    acting.replaced.around(module, "fsdp2_prepare_model", prepared)


def _settings(acting: Acting, module: ModuleType) -> None:
    """Weights that the first process alone has loaded are given to the others on a GPU."""
    if "FullyShardedDataParallelPlugin" not in vars(module):
        return

    def made(original: Any, plugin: Any) -> None:
        asked = getattr(module, "is_cuda_available", None)
        if asked is None or not _no_gpu():
            original(plugin)
            return
        module.is_cuda_available = lambda: True  # type: ignore[attr-defined]
        try:
            original(plugin)
        finally:
            module.is_cuda_available = asked  # type: ignore[attr-defined]
        if plugin.sync_module_states:
            plugin.param_init_fn = lambda part: part.to_empty(device="cpu", recurse=False)

    acting.replaced.around(module.FullyShardedDataParallelPlugin, "__post_init__", made)
