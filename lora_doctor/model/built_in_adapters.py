"""Adapters that a model brings itself: what trains after loading, and after PEFT put one more on.

Some models (Phi-4-multimodal's kind) call ``get_peft_model`` on their inner model while they are
being built. Two recipes are possible on them: one that trains what is there, and one that asks
PEFT for an adapter of its own on top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lora_doctor.model.injection import Injected, inject, plain_wrap
from lora_doctor.model.loading import peft_config
from lora_doctor.model.meta_copy import meta_copy
from lora_doctor.model.module_path import pattern_of
from lora_doctor.model.modules import is_adapter_layer
from lora_doctor.model.peft_models import is_peft_model, own_config, prompts
from lora_doctor.model.target_entries import meaning
from lora_doctor.recipe.recipe import Recipe, asks_for_adapter
from lora_doctor.results.built_in_adapters import AdapterState, BuiltIn
from lora_doctor.results.injection import Injection
from lora_doctor.sandbox.temporary import temporary_folder


def brings_adapters(model: Any) -> bool:
    """Whether PEFT layers are in a model that nobody wrapped."""
    if is_peft_model(model):
        return False
    return any(is_adapter_layer(module) or is_peft_model(module) for module in model.modules())


def trains_its_own(model: Any, recipe: Recipe) -> bool:
    """Whether the model's own adapters are what this recipe trains."""
    return brings_adapters(model) and not asks_for_adapter(recipe)


def train_own(model: Any, *, integers: bool = True) -> Any:
    """The model with its active adapters trainable and everything else frozen; changed in place.

    Where none is active, all of them: a forward may switch them by what it is given. Without
    ``integers`` weights that are not floating point are passed over.

    Raises:
        RuntimeError: an adapter weight is not floating point (torch's own words).
    """
    found = list(held(model))
    active = {item.name for item in found if item.active}
    model.requires_grad_(False)
    for item in found:
        if not active or item.name in active:
            for tensor in item.tensors:
                if integers or tensor.is_floating_point():
                    tensor.requires_grad_(True)
    return model


def read_own(model: Any) -> Injected:
    """The built-in adapters as the result of an injection that somebody else made."""
    adapted = {path: 1 for path, module in model.named_modules() if is_adapter_layer(module)}
    ours = {id(tensor): tensor for item in held(model) for tensor in item.tensors}
    copies = _saved_copies(model)
    trained = [item for item in model.named_parameters() if item[1].requires_grad]
    biases = getattr(own_config(model), "bias", "none") != "none"
    other = [
        (name, value)
        for name, value in trained
        if id(value) not in ours and id(value) not in copies and not (biases and "bias" in name)
    ]
    return Injected(
        Injection(
            ok=True,
            adapter_parameters=sum(int(tensor.numel()) for tensor in ours.values()),
            trainable_parameters=sum(int(value.numel()) for _, value in trained),
            total_parameters=sum(int(value.numel()) for value in model.parameters()),
            trainable_other=tuple(dict.fromkeys(_pattern(name) for name, _ in other)),
            trainable_adapter_parameters=sum(
                int(tensor.numel()) for tensor in ours.values() if tensor.requires_grad
            ),
            trainable_other_parameters=sum(int(value.numel()) for _, value in other),
        ),
        adapted,
    )


def describe(model: Any, recipe: Recipe, *, loaded: bool) -> BuiltIn | None:
    """What becomes of the built-in adapters under this recipe; ``None`` when there are none.

    ``loaded``: the weights come out of ``from_pretrained``; a module that the user hands over is
    taken as it is. ``model`` is not changed.
    """
    if not brings_adapters(model):
        return None
    unfreezes, freezes = what_loading_trains() if loaded else (False, False)
    wrapped = asks_for_adapter(recipe)
    config = peft_config(recipe) if wrapped else None
    thinned = meta_copy(model, meaning(config) if config is not None else _same)
    if unfreezes:
        for value in thinned.model.parameters():
            value.requires_grad_(value.is_floating_point())
    if freezes:
        train_own(thinned.model, integers=False)
    before = _states(thinned.model, thinned.times)
    base = thinned.model
    if config is not None:
        if not inject(model, recipe).result.ok:
            return BuiltIn(tuple(before.values()), wrapped, unfreezes)
        base = plain_wrap(thinned.model, config).get_base_model()
    after = _states(base, thinned.times)
    ours = {id(tensor) for item in held(base) for tensor in item.tensors}
    copies = _saved_copies(base)
    size = trained = 0
    other: dict[str, None] = {}
    for name, value in base.named_parameters():
        if id(value) in ours or id(value) in copies:
            continue
        count = int(value.numel()) * thinned.times(name)
        size += count
        if value.requires_grad:
            trained += count
            other[_pattern(name)] = None
    return BuiltIn(
        tuple(_joined(before, after)) if wrapped else tuple(before.values()),
        wrapped,
        unfreezes,
        tuple(other),
        trained,
        size,
    )


def what_loading_trains() -> tuple[bool, bool]:
    """Whether ``from_pretrained`` makes weights trainable that ``__init__`` had frozen, and whether
    it freezes what was trainable and is no adapter of a model that brings some.

    Asked of the installed transformers, with the patches in force, by a model of two weights.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import PretrainedConfig, PreTrainedModel

    class Probe(PreTrainedModel):  # type: ignore[misc, unused-ignore]
        config_class = PretrainedConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.frozen = torch.nn.Linear(1, 1, bias=False)
            self.free = torch.nn.Linear(1, 1, bias=False)
            inject_adapter_in_model(LoraConfig(r=1, target_modules=["frozen"]), self, "own")
            self.free.requires_grad_(True)
            self.post_init()

        def _init_weights(self, module: Any) -> None:
            """Nothing to initialise: the weights are loaded."""

    with temporary_folder() as folder:
        with torch.device("cpu"):
            Probe(PretrainedConfig()).save_pretrained(folder, safe_serialization=True)
        loaded = Probe.from_pretrained(folder)
    base = loaded.frozen.base_layer.weight
    free = loaded.free.weight
    return bool(base.requires_grad), not free.requires_grad


def _same(path: str) -> object:
    """Layers are alike wherever they stand: no adapter config tells them apart."""
    return None


@dataclass(frozen=True)
class Held:
    """Weights of one adapter in one place: a layer, or the prompt encoder of a PEFT model."""

    path: str
    name: str
    tensors: list[Any]
    #: Whether it takes part in the forward.
    active: bool


def held(model: Any) -> Iterator[Held]:
    """The weights of every adapter, layer by layer, then those of prompts."""
    for path, module in model.named_modules():
        if not is_adapter_layer(module):
            continue
        found: dict[str, list[Any]] = {}
        for attribute in module.adapter_layer_names:
            held: Any = getattr(module, attribute, None)
            if not hasattr(held, "keys"):
                continue
            for name, item in held.items():
                tensors = list(item.parameters()) if hasattr(item, "parameters") else [item]
                found.setdefault(name, []).extend(tensors)
        active = active_in(module)
        for name, tensors in found.items():
            yield Held(path, name, tensors, name in active)
    for path, name, encoder, is_active in prompts(model):
        yield Held(path, name, list(encoder.parameters()), is_active)


def _states(model: Any, times: Callable[[str], int]) -> dict[str, AdapterState]:
    counts: dict[str, Counter[str]] = {}
    for item in held(model):
        factor = times(item.path)
        found = counts.setdefault(item.name, Counter())
        found["layers"] += factor
        found["tensors"] += factor * len(item.tensors)
        found["parameters"] += factor * sum(int(tensor.numel()) for tensor in item.tensors)
        found["trainable"] += factor * sum(bool(tensor.requires_grad) for tensor in item.tensors)
        found["active"] += factor * item.active
    return {name: AdapterState(name, True, **found) for name, found in counts.items()}


def active_in(layer: Any) -> tuple[str, ...]:
    """Names of the adapters that take part in this layer's forward."""
    if getattr(layer, "disable_adapters", False):
        return ()
    active: Any = getattr(layer, "active_adapters", None) or getattr(layer, "active_adapter", ())
    return (active,) if isinstance(active, str) else tuple(active)


def _joined(
    before: dict[str, AdapterState], after: dict[str, AdapterState]
) -> Iterator[AdapterState]:
    from dataclasses import replace

    for name, state in after.items():
        old = before.get(name)
        yield replace(
            old if old is not None else state,
            brought=old is not None,
            # One of the recipe's with the same name on top sits in more places than before.
            layers=state.layers,
            tensors=state.tensors,
            trainable=old.trainable if old is not None else 0,
            active=old.active if old is not None else 0,
            trainable_wrapped=state.trainable,
            active_wrapped=state.active,
        )


def _saved_copies(model: Any) -> set[int]:
    """Ids of the weights in ``modules_to_save``, which are trained on purpose."""
    copies: set[int] = set()
    for module in model.modules():
        held: Any = getattr(module, "modules_to_save", None)
        if hasattr(module, "original_module") and hasattr(held, "parameters"):
            copies.update(id(value) for value in held.parameters())
    return copies


def _pattern(name: str) -> str:
    return pattern_of(name.replace(".base_layer", ""))
