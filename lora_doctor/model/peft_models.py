"""The PEFT models in a model: the model itself, or parts of it at any depth.

A script wraps its language model and builds a module of its own around it as often as it wraps the
whole. What holds for a ``PeftModel`` holds for one that is a part; whoever asks about adapters asks
here which there are.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any


def is_peft_model(model: Any) -> bool:
    """Whether this object is a ``PeftModel`` or a mixed one."""
    import peft

    return isinstance(model, (peft.PeftModel, peft.PeftMixedModel))


def peft_models(model: Any) -> dict[str, Any]:
    """The PEFT models in ``model`` by their paths, ``""`` for the model itself.

    What lies inside one of them, a wrapper in a wrapper too, belongs to it and is not listed.
    """
    if is_peft_model(model):
        return {"": model}
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        if is_peft_model(module) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    return found


def own_config(model: Any) -> Any:
    """The config of the adapter that is trained: of the first PEFT model, else what
    ``add_adapter`` of transformers leaves on the model; ``None`` without one."""
    holders = list(peft_models(model).values()) or [model]
    for holder in holders:
        configs: Any = getattr(holder, "peft_config", None)
        if isinstance(configs, Mapping) and configs:
            names = active_names(holder) if is_peft_model(holder) else ()
            return next((configs[name] for name in names if name in configs), None) or next(
                iter(configs.values())
            )
    return None


def active_names(wrapper: Any) -> tuple[str, ...]:
    """Names of the adapters of a PEFT model that take part in its forward."""
    names: Any = wrapper.active_adapter
    return (names,) if isinstance(names, str) else tuple(names)


def prompt_encoders(wrapper: Any) -> Mapping[str, Any]:
    """The prompt encoders of a PEFT model itself, by adapter; ``getattr`` would pass on to one
    inside it."""
    found: Mapping[str, Any] = wrapper._modules.get("prompt_encoder") or {}
    return found


def prompts(model: Any) -> Iterator[tuple[str, str, Any, bool]]:
    """``(path, adapter, encoder, whether it is active)`` of the PEFT models that are parts."""
    for path, wrapper in peft_models(model).items():
        for name, encoder in prompt_encoders(wrapper).items():
            place = f"{path}.prompt_encoder" if path else "prompt_encoder"
            yield place, name, encoder, name in active_names(wrapper)


def other_parts(model: Any) -> Iterator[tuple[str, Any]]:
    """``(path, module)`` of what PEFT has put into a model without making a tuner layer, a trained
    copy or a prompt encoder of it: attention with a prompt inside (adaption prompt), the gate over
    several adapters (X-LoRA), the small model that runs beside the large one (Shadow)."""
    tuners = importlib.import_module("peft.tuners.tuners_utils")
    within: str | None = None
    beside: set[int] = set()
    for path, module in model.named_modules():
        if within is not None and path.startswith(within):
            continue  # what lies in a layer of PEFT's belongs to it
        name = type(module).__module__
        if isinstance(module, tuners.BaseTuner):
            # It holds the user's model, and beside it what all layers share.
            beside.update(id(one) for key, one in module.named_children() if key != "model")
        if id(module) in beside:
            within = f"{path}."
            yield path, module
            continue
        if isinstance(module, tuners.BaseTunerLayer) or path.endswith("prompt_encoder"):
            within = f"{path}."
        elif (
            name.startswith("peft.tuners.")
            and not isinstance(module, tuners.BaseTuner)
            # What stands around the whole model has no base class for some kinds, but the configs.
            and not hasattr(module, "peft_config")
        ):
            within = f"{path}."
            yield path, module


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """With no adapter of any PEFT model in the forward."""
    with ExitStack() as stack:
        for wrapper in peft_models(model).values():
            if hasattr(wrapper, "disable_adapter"):
                stack.enter_context(wrapper.disable_adapter())
        yield
