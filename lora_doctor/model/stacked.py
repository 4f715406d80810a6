"""Adapters put on a model by more than one call of ``get_peft_model``, and what becomes of each.

Read off a model that somebody has wrapped; nothing is run and nothing is changed. Who is in there
is told by PEFT's own classes, what is saved by PEFT's own state dict.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lora_doctor.model.built_in_adapters import held
from lora_doctor.model.module_path import pattern_of
from lora_doctor.model.peft_models import active_names, is_peft_model, peft_models, prompt_encoders
from lora_doctor.model.target_entries import target_matcher
from lora_doctor.results.stacked_adapters import Stacked, StackedAdapter


def describe(model: Any) -> Stacked | None:
    """What is stacked in ``model``, or in a part of it; ``None`` when one call, or none, made the
    adapters of each."""
    for path, part in peft_models(model).items():
        found = _described(part, path)
        if found is not None:
            return found
    return None


def _described(model: Any, path: str) -> Stacked | None:
    """What is stacked in this PEFT model, which is at ``path``."""
    chain = wrappers_of(model)
    root = bottom(model)
    leftovers = _leftovers(chain, root)
    found = list(_adapters(chain, root))
    # A submodule that was wrapped on its own is part of the model; a mark at the top is not.
    marked = "peft_config" in vars(root)
    unknown = marked and any(item.wrapper is None for item in found)
    asleep = any(item.trainable and not item.active for item in found)
    if len(chain) == 1 and not leftovers and not unknown and not asleep:
        return None
    saved, names = _saved(chain[0])
    members = tuple(
        StackedAdapter(
            item.method, item.name, item.wrapper, item.tensors, item.trainable,
            item.tensors if item.prompt and item.wrapper == 0 else len(item.places & saved),
            item.active,
        )
        for item in found
    )  # fmt: skip
    renamed = [name for name in names if len(chain) > 1 and name.startswith(_TWICE)]
    return Stacked(
        path=path,
        wrappers=tuple(f"{type(item).__name__} ({_methods(item)})" for item in chain),
        members=members,
        saved_names=len(names),
        renamed=len(renamed),
        renamed_example=renamed[0] if renamed else "",
        leftovers=tuple(dict.fromkeys(pattern_of(path) for path, _ in leftovers)),
        leftover_tensors=sum(count for _, count in leftovers),
    )


#: What starts the name of a saved weight of a wrapper in a wrapper.
_TWICE = "base_model.model.base_model."


def wrappers_of(model: Any) -> list[Any]:
    """The PEFT models around a model, the outermost first; empty for a plain one."""
    chain = []
    while is_peft_model(model):
        chain.append(model)
        model = _inside(model)
    return chain


def bottom(model: Any) -> Any:
    """The model inside all wrappers."""
    chain = wrappers_of(model)
    return _inside(chain[-1]) if chain else model


def _inside(wrapper: Any) -> Any:
    # Not get_base_model(): a second call may have overwritten the config that it goes by.
    return wrapper.base_model if prompt_encoders(wrapper) else wrapper.base_model.model


@dataclass
class _Found:
    method: str
    name: str
    wrapper: int | None
    tensors: int
    trainable: int
    active: bool
    prompt: bool = False
    #: Where the tensors lie in memory: a state dict holds other objects over the same memory.
    places: frozenset[int] = frozenset()


def _adapters(chain: list[Any], root: Any) -> Iterator[_Found]:
    for number, wrapper in enumerate(chain):
        for name, encoder in prompt_encoders(wrapper).items():
            tensors = list(encoder.parameters())
            config = wrapper.peft_config.get(name)
            trainable = sum(bool(tensor.requires_grad) for tensor in tensors)
            # Without its config, which a second call may have overwritten, it is passed by.
            used = name in active_names(wrapper) and bool(config and config.is_prompt_learning)
            method = _method_of(encoder)
            yield _Found(method, name, number, len(tensors), trainable, used, True)
    by_name: dict[str, list[Any]] = {}
    active: set[str] = set()
    for item in held(root):
        by_name.setdefault(item.name, []).extend(item.tensors)
        active.update({item.name} if item.active else ())
    for name, tensors in by_name.items():
        owner, config = _owner(chain, name)
        yield _Found(
            _method(config),
            name,
            owner,
            len(tensors),
            sum(bool(tensor.requires_grad) for tensor in tensors),
            name in active,
            places=frozenset(tensor.data_ptr() for tensor in tensors),
        )


def _owner(chain: list[Any], name: str) -> tuple[int | None, Any]:
    """The wrapper that knows an adapter in the layers, and its config."""
    for number, wrapper in enumerate(chain):
        config = wrapper.peft_config.get(name)
        if config is not None and not config.is_prompt_learning:
            return number, config
    config = getattr(bottom(chain[0]), "peft_config", {}).get(name)
    return None, config


def _method_of(encoder: Any) -> str:
    """The method that makes this kind of prompt encoder."""
    for module_name in ("peft.mapping", "peft.peft_model"):
        module = importlib.import_module(module_name)
        for kind, cls in getattr(module, "PEFT_TYPE_TO_TUNER_MAPPING", {}).items():
            if type(encoder) is cls:
                return str(kind.value)
    # Older releases name the classes nowhere but in the code that makes them.
    return {"PromptEmbedding": "PROMPT_TUNING", "PrefixEncoder": "PREFIX_TUNING"}.get(
        type(encoder).__name__, type(encoder).__name__
    )


def _method(config: Any) -> str:
    kind = getattr(config, "peft_type", None)
    return str(getattr(kind, "value", kind)) if kind is not None else "an adapter"


def _methods(wrapper: Any) -> str:
    return ", ".join(f"{_method(config)} {name}" for name, config in wrapper.peft_config.items())


def _leftovers(chain: list[Any], root: Any) -> list[tuple[str, int]]:
    """Layers with an adapter that its config does not name, and how many tensors it has there."""
    found = []
    for item in held(root):
        path, tensors = item.path, item.tensors
        _, config = _owner(chain, item.name)
        matcher = target_matcher(config) if config is not None else None
        named = getattr(config, "target_modules", None)
        extra = (
            getattr(config, "target_parameters", None),
            getattr(config, "trainable_token_indices", None),
            getattr(config, "layer_replication", None),
        )
        if matcher is None or not named or any(extra):
            continue
        # In a wrapper in a wrapper PEFT saw the path from one level further out.
        if not any(matcher(config, f"{prefix}{path}") for prefix in ("", *_prefixes(chain))):
            found.append((path, len(tensors)))
    return found


def _prefixes(chain: list[Any]) -> list[str]:
    return ["base_model.model." * count for count in range(1, len(chain))]


def _saved(outermost: Any) -> tuple[set[int], list[str]]:
    """Where the tensors lie that ``save_pretrained`` would write, and their names."""
    state_dict = importlib.import_module("peft").get_peft_model_state_dict
    places: set[int] = set()
    names: list[str] = []
    if not hasattr(outermost, "save_pretrained") or not hasattr(outermost, "get_base_model"):
        return places, names  # a mixed model cannot be saved
    for name, config in outermost.peft_config.items():
        if config.is_prompt_learning:
            names.append("prompt_embeddings")
            continue
        for key, tensor in state_dict(outermost, adapter_name=name).items():
            names.append(key)
            places.add(tensor.data_ptr())
    return places, names
