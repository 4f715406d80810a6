"""Which of a model's several adapters the training moves: ``set_adapter`` switches the others off,
and what a backward pass brings to weights that are switched off is dropped without an error."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting

_kept: weakref.WeakKeyDictionary[Acting, _Several] = weakref.WeakKeyDictionary()


def prepare(acting: Acting) -> None:
    """Once torch has optimizers."""
    acting.after("torch.optim.optimizer", lambda module: _optimizers(acting, module))


def watch(acting: Acting, model: Any) -> None:
    """Before a forward that trains: look at the weights that take a gradient now. Nothing is done
    where the model has one adapter."""
    if len(getattr(model, "peft_config", None) or ()) > 1:
        several(acting).look(model)


def several(acting: Acting) -> _Several:
    """What this process has seen."""
    return _kept.setdefault(acting, _Several())


class _Several:
    """``_arrived``: adapter, then path, to the tensor, for each that a backward pass has reached.
    ``_held``: identities of what any optimizer has ever held. ``_accumulated``: of what took
    gradients while the backward pass ran. ``_felt``: adapters with a gradient other than 0."""

    def __init__(self) -> None:
        self.optimizers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._hooked: set[int] = set()
        self._arrived: dict[str, dict[str, Any]] = {}
        self._held: set[int] = set()
        self._accumulated: set[int] = set()
        self._felt: set[str] = set()

    def look(self, model: Any) -> None:
        """Be told of the gradients of the adapter weights that are switched on."""
        for adapter, name, tensor in _switched_on(model):
            if id(tensor) not in self._hooked:
                self._hooked.add(id(tensor))
                tensor.register_hook(self._hook(adapter, name, tensor))

    def _hook(self, adapter: str, name: str, tensor: Any) -> Any:
        def arrives(gradient: Any) -> None:
            self._arrived.setdefault(adapter, {})[name] = tensor
            if tensor.requires_grad:
                self._accumulated.add(id(tensor))
            if adapter not in self._felt and bool(gradient.detach().any()):
                self._felt.add(adapter)

        return arrives

    def stepped(self) -> list[dict[str, Any]]:
        """After a step of an optimizer: every adapter that gradients have reached so far."""
        for optimizer in list(self.optimizers):
            for group in optimizer.param_groups:
                self._held.update(map(id, group["params"]))
        return [
            {
                "adapter": adapter,
                "tensors": list(tensors),
                "held": sum(id(one) in self._held for one in tensors.values()),
                "accumulated": sum(id(one) in self._accumulated for one in tensors.values()),
            }
            for adapter, tensors in self._arrived.items()
            if adapter in self._felt
        ]


def _switched_on(model: Any) -> Iterator[tuple[str, str, Any]]:
    """Adapter, path and tensor of the adapter weights that take a gradient."""
    from lora_doctor.contract.adapters import every_parameter, find_adapters
    from lora_doctor.text import clean_path

    own = {id(one.tensor) for one in every_parameter(find_adapters(model))}
    for name, tensor in model.named_parameters():
        if tensor.requires_grad and id(tensor) in own:
            parts = name.split(".")
            adapter = next((one for one in model.peft_config if one in parts), None)
            if adapter is not None:
                yield str(adapter), clean_path(name), tensor


def _optimizers(acting: Acting, module: ModuleType) -> None:
    found = several(acting)

    def made(original: Any, optimizer: Any, *arguments: Any, **named: Any) -> None:
        original(optimizer, *arguments, **named)
        if not acting.in_contract:
            found.optimizers.add(optimizer)

    def stepped(optimizer: Any, arguments: Any, named: Any) -> None:
        if acting.in_contract:
            return
        with acting.ours():
            adapters = found.stepped()
        if adapters:
            acting.journal.tell("several_adapters", adapters=adapters)

    acting.replaced.around(module.Optimizer, "__init__", made)
    module.register_optimizer_step_post_hook(stepped)
