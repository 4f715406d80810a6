"""PEFT: where its configs are made, adapters that exist onto small models, and the first training
forward of a model with adapters."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import threading
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import (
    contract,
    frozen_adapters,
    packed,
    processes,
    several_adapters,
    sharding,
    shifted_labels,
)
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.arguments import set_by_somebody
from lora_doctor.dry_run.acts.outputs import Redirected
from lora_doctor.errors import LoraDoctorError
from lora_doctor.guest.call_sites import caller

#: Forwards whose token ids are kept.
_KEPT = 4
_watchers: weakref.WeakKeyDictionary[Acting, _FirstForward] = weakref.WeakKeyDictionary()


def prepare(acting: Acting) -> None:
    """Once PEFT is there."""
    acting.after("peft.tuners.lora.config", lambda module: _configs(acting, module))
    acting.after("peft.peft_model", lambda module: _wrappers(acting, module))
    acting.after("transformers.integrations.peft", lambda found: _own_adapters(acting, found))


def _configs(acting: Acting, module: ModuleType) -> None:
    from lora_doctor.recipe.files.read_write import as_recipe

    def made(original: Any, config: Any) -> None:
        place = caller()
        given = list(set_by_somebody(config))  # before PEFT fills in what it derives
        original(config)
        if acting.in_contract:
            return
        if place is not None:
            acting.config_places[id(config)] = place
        acting.config_given[id(config)] = given
        with contextlib.suppress(LoraDoctorError):  # PEFT takes what no recipe can hold
            acting.journal.tell(
                "config",
                adapter=dict(as_recipe(config).values),
                given=given,
                place=None if place is None else vars(place),
            )

    acting.replaced.around(module.LoraConfig, "__post_init__", made)


def _wrappers(acting: Acting, module: ModuleType) -> None:
    places = Redirected(acting)

    def from_pretrained(
        original: Any, wrapper: Any, model: Any, model_id: Any, *more: Any, **named: Any
    ) -> Any:
        found = places.to_read(model_id)
        if not acting.in_contract and not places.is_of_this_run(found):
            found = _small_adapter(acting, model, model_id, named)
            for name in ("subfolder", "revision"):
                named.pop(name, None)
        result = original(model, str(found), *more, **named)
        if not acting.in_contract:
            frozen_adapters.loaded(acting, result, str(model_id))
        return result

    acting.replaced.around(module.PeftModel, "from_pretrained", from_pretrained)
    watch = watcher(acting)
    for owner in vars(module).values():
        if not isinstance(owner, type) or not issubclass(owner, module.PeftModel):
            continue
        if "forward" in vars(owner):
            acting.replaced.around(owner, "forward", watch)
        if "__init__" in vars(owner):
            acting.replaced.around(owner, "__init__", _wrapping(acting, owner))


def _wrapping(acting: Acting, owner: type) -> Any:
    """Around the constructor of a wrapper: what its config says before PEFT writes into it what
    nobody has asked for (``modules_to_save`` of a classifier)."""
    from lora_doctor.recipe.files.read_write import as_recipe

    def wrapped(original: Any, wrapper: Any, *arguments: Any, **named: Any) -> None:
        outermost = next(kind for kind in type(wrapper).__mro__ if "__init__" in vars(kind))
        config = named.get("peft_config", arguments[1] if len(arguments) > 1 else None)
        if config is not None and owner is outermost and not acting.in_contract:
            with contextlib.suppress(LoraDoctorError):
                acting.config_values[id(config)] = dict(as_recipe(config).values)
        original(wrapper, *arguments, **named)
        if owner is outermost and not acting.in_contract:
            sharding.unsharded(acting).add(wrapper)

    return wrapped


def watcher(acting: Acting) -> _FirstForward:
    """The one of this process: PEFT's wrappers and transformers' own models share it."""
    if acting not in _watchers:
        _watchers[acting] = _FirstForward(acting)
    return _watchers[acting]


def _own_adapters(acting: Acting, module: ModuleType) -> None:
    """``model.add_adapter`` of transformers: no wrapper, the model's own forward trains."""
    done: set[type] = set()

    def added(original: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        result = original(model, *arguments, **named)
        owner = next(kind for kind in type(model).__mro__ if "forward" in vars(kind))
        if not acting.in_contract and owner not in done:
            done.add(owner)
            acting.replaced.around(owner, "forward", watcher(acting))
        if not acting.in_contract:
            sharding.unsharded(acting).add(model)
        return result

    acting.replaced.around(module.PeftAdapterMixin, "add_adapter", added)


def _small_adapter(acting: Acting, model: Any, name: Any, named: dict[str, Any]) -> Path:
    """An adapter of the same config for the small model; the real weights do not fit it."""
    import peft

    looked = {
        k: v for k, v in named.items() if k in ("subfolder", "revision", "token", "cache_dir")
    }
    with acting.ours():
        config = peft.PeftConfig.from_pretrained(str(name), **looked)
        key = hashlib.sha256(f"{name} {sorted(looked)}".encode()).hexdigest()[:16]
        folder = acting.session.models / f"adapter-{key}"
        if not folder.exists():
            twin = copy.deepcopy(model)
            peft.get_peft_model(twin, copy.deepcopy(config)).save_pretrained(str(folder))
    acting.journal.tell("adapter", name=str(name))
    return folder


class _FirstForward:
    """Around ``forward`` of PEFT's wrappers: when one is first called to train, the training
    contract is run on a copy of it, with what it was called with."""

    def __init__(self, acting: Acting) -> None:
        self._acting = acting
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._kept = 0
        self._lock = threading.Lock()

    def __call__(self, original: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        if self._acting.in_contract:
            return original(model, *arguments, **named)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            frozen_adapters.called_to_train(self._acting, model)
        elif self._is_training(model):
            several_adapters.watch(self._acting, model)
            with self._lock:
                first, new = not self._seen, model not in self._seen
                self._seen.add(model)
            whole = sharding.unsharded(self._acting).of(model)
            if self._kept < _KEPT:
                self._kept += 1
                given = contract.keep_rows(self._acting, model, arguments, named)
                if whole is not None:
                    packed.look(self._acting, whole, given)
                    shifted_labels.look(self._acting, whole, given)
            if first and processes.rank() == 0:  # the others wait for it where they need it
                contract.run(self._acting, model, whole, (arguments, named))
            elif new and not first:
                self._acting.note("not-proven", "a second model with adapters was not judged")
        return original(model, *arguments, **named)

    @staticmethod
    def _is_training(model: Any) -> bool:
        import torch

        return torch.is_grad_enabled() and bool(model.training) and hasattr(model, "peft_config")
