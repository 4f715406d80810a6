"""Adapters in float32 on a model in float16, as PEFT makes them itself since 0.12.

Before, PEFT gave an adapter the dtype of the layer that it sits on, and a gradient scaler refuses
to unscale float16 gradients. The frozen weights stay as they are, and the layer's output keeps its
dtype; PEFT's layers cast their input to the dtype of the adapter.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

NAME = "adapters_in_float32"
SUMMARY = "Keeps new adapters in float32 on a float16 model, as PEFT does since 0.12"

_log = logging.getLogger("lora_doctor")


def is_needed() -> bool:
    """Whether the installed PEFT leaves adapters in float16."""
    import peft

    return "autocast_adapter_dtype" not in inspect.signature(peft.get_peft_model).parameters


def why_not() -> str | None:
    """Why it does not fit the installed PEFT, or ``None``."""
    try:
        import peft
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        return f"PEFT cannot be imported: {error}"
    if not callable(getattr(peft.PeftModel, "add_adapter", None)):
        return f"PEFT {peft.__version__}'s PeftModel has no add_adapter"
    if not hasattr(BaseTunerLayer, "adapter_layer_names"):
        return f"PEFT {peft.__version__}'s layers do not name their adapter weights"
    return None


def install() -> Callable[[], None]:
    """Patch ``PeftModel``'s constructor and ``add_adapter``; nothing where PEFT does it itself."""
    import peft

    if not is_needed():
        return _nothing
    originals = (peft.PeftModel.__init__, peft.PeftModel.add_adapter)
    peft.PeftModel.__init__ = _followed_by_a_cast(peft.PeftModel.__init__)
    peft.PeftModel.add_adapter = _followed_by_a_cast(peft.PeftModel.add_adapter)

    def undo() -> None:
        peft.PeftModel.__init__, peft.PeftModel.add_adapter = originals

    return undo


def _followed_by_a_cast(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def patched(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _cast(self)

    return patched


def _cast(model: Any) -> None:
    """Adapter weights in float16 or bfloat16 become float32; base weights and the modules that
    are trained as a whole, whose inputs nobody casts, do not.

    Those of every adapter: PEFT casts the first one back when a second is put on the same layer.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    dtypes: set[torch.dtype] = set()
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for attribute in layer.adapter_layer_names:
            held: Any = getattr(layer, attribute, None)
            if not hasattr(held, "parameters"):
                continue
            for weight in held.parameters():
                if weight.dtype in (torch.float16, torch.bfloat16):
                    dtypes.add(weight.dtype)
                    weight.data = weight.data.float()
    if dtypes:
        _say_once(", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)))


@functools.cache
def _say_once(dtypes: str) -> None:
    _log.warning("patch %s: new adapters are float32 and no longer %s", NAME, dtypes)


def _nothing() -> None:
    """The way back where nothing was changed."""
