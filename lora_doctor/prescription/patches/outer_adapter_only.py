"""An adapter of the recipe's on a model that brings adapters of its own.

``get_peft_model`` on such a model puts the new adapter into the same layers, and what trains then
depends on the release: the built-in adapter instead of the new one (PEFT 0.7), the new one with
the built-in one switched off, or everything that was trainable before, base weights included
(PEFT 0.21 gives every weight of a model that has adapters its former ``requires_grad`` back).

With the patch the new adapter is trained and nothing else, on top of a model that computes what it
computed before: what was active stays active, frozen. It acts on the wrapper whose adapter has
the name that a training script uses, never on those that the model makes of itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from lora_doctor.prescription.patches._support import Changes, Once

NAME = "outer_adapter_only"
SUMMARY = "Trains the recipe's adapter alone, on top of the adapters that a model brings itself"

_once = Once()


def why_not() -> str | None:
    """Why it does not fit the installed PEFT, or ``None``."""
    try:
        import peft
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        return f"PEFT cannot be imported: {error}"
    parameters = inspect.signature(peft.PeftModel.__init__).parameters
    if not {"model", "peft_config", "adapter_name"} <= set(parameters):
        return f"the constructor of PEFT {peft.__version__}'s PeftModel has other parameters"
    if not callable(getattr(BaseTunerLayer, "set_adapter", None)):
        return f"PEFT {peft.__version__}'s layers have no 'set_adapter'"
    return None


def install(adapter_name: str = "default") -> Callable[[], None]:
    """Patch the constructor of PEFT's wrappers for adapters called ``adapter_name``."""
    import peft

    _once.forget()
    signature = inspect.signature(peft.PeftModel.__init__)

    def keeping_apart(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            given = signature.bind(self, *args, **kwargs)
            given.apply_defaults()
            name, config = given.arguments["adapter_name"], given.arguments["peft_config"]
            before = _active(given.arguments["model"]) if name == adapter_name else {}
            original(self, *args, **kwargs)
            if before:
                _keep_apart(self, name, config, before)

        return __init__

    with Changes() as changes:
        changes.around(peft.PeftModel, "__init__", keeping_apart)
    return changes.undo


def _active(model: Any) -> dict[int, tuple[str, ...]]:
    """Id of each adapter layer to the adapters that take part in its forward."""
    from lora_doctor.model.built_in_adapters import active_in

    return {id(layer): active_in(layer) for layer in _layers(model)}


def _layers(model: Any) -> Iterator[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            yield module


def _keep_apart(wrapped: Any, name: str, config: Any, before: dict[int, tuple[str, ...]]) -> None:
    learns = not getattr(config, "inference_mode", False)
    ours: set[int] = set()
    for layer in _layers(wrapped):
        own = _weights(layer, name)
        ours.update(id(weight) for weight in own)
        kept = [other for other in before.get(id(layer), ()) if other != name]
        if kept or own:
            layer.set_adapter([*kept, name] if own else kept)
    biases = str(getattr(config, "bias", "none")) != "none"
    for path, weight in wrapped.named_parameters():
        if id(weight) in ours:
            weight.requires_grad_(learns and weight.is_floating_point())
        elif ".modules_to_save." not in path and not (biases and path.endswith("bias")):
            weight.requires_grad_(False)
    others = ", ".join(dict.fromkeys(other for kept in before.values() for other in kept))
    _once.warning(
        f"patch {NAME}: adapter {name} is trained alone; the model's own "
        f"({others or 'none active'}) stay as they are, frozen"
    )


def _weights(layer: Any, name: str) -> list[Any]:
    """The weights of one adapter in one layer."""
    found: list[Any] = []
    for attribute in layer.adapter_layer_names:
        held: Any = getattr(layer, attribute, None)
        if not hasattr(held, "keys") or name not in held:
            continue
        item = held[name]
        found += list(item.parameters()) if hasattr(item, "parameters") else [item]
    return found
