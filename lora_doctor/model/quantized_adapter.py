"""What the installed PEFT says to a layer of the installed bitsandbytes.

One layer is made and adapted, on the CPU and not quantized: that needs no GPU, which the layer's
numbers would.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from typing import Any, Literal

from lora_doctor.errors import LoraDoctorError
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.loading import peft_config
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.error_report import ErrorReport

#: Features into the layer that is tried, and out of it.
_SIZE = 8
#: Keys that name other layers than the one that is tried, or more of them.
_OTHER_LAYERS = (
    "target_parameters", "modules_to_save", "exclude_modules", "layers_to_transform",
    "layers_pattern", "trainable_token_indices", "layer_replication", "task_type",
)  # fmt: skip

#: What makes PEFT read the values of the layer when it adapts it, and what does not: the layer here
#: has none, because its weight is not quantized.
_READS_WEIGHTS = {"use_dora": False, "init_lora_weights": True}


def refusal(kind: Literal["4bit", "8bit"], recipe: Recipe) -> ErrorReport | None:
    """What PEFT raises when it puts the recipe's adapter on such a layer; ``None`` where it does
    not, where it raises on a plain layer of these sizes as well (block sizes are for the real
    layers), or where it cannot be tried: without bitsandbytes, or with an adapter on no layers."""
    import torch

    try:
        layer = _layer(kind)
        config = peft_config(recipe)
    except LoraDoctorError:
        raise
    except Exception:  # noqa: BLE001 - no bitsandbytes, or a config that the injection reports
        return None
    if not getattr(config, "target_modules", None):
        return None
    config.target_modules = {"layer"}
    for key in _OTHER_LAYERS:
        if getattr(config, key, None) is not None:
            setattr(config, key, None)
    for key, plain in _READS_WEIGHTS.items():
        if hasattr(config, key):
            setattr(config, key, plain)
    plain = copy.deepcopy(config)
    refused = _adapt(layer, f"is_loaded_in_{kind}", config)
    if refused is None or _adapt(torch.nn.Linear(_SIZE, _SIZE, bias=False), "", plain):
        return None
    return refused


def _adapt(layer: Any, mark: str, config: Any) -> ErrorReport | None:
    """``mark``: what from_pretrained leaves on a quantized model, and PEFT goes by."""
    import peft
    import torch

    model = torch.nn.Module()
    model.layer = layer
    if mark:
        setattr(model, mark, True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft.inject_adapter_in_model(config, model)
    except Exception as error:  # noqa: BLE001 - what PEFT refuses is the evidence
        return library_error(error)
    return None


def _layer(kind: str) -> Any:
    """A layer as `from_pretrained` puts it in, before its weight is quantized."""
    layers = importlib.import_module("bitsandbytes").nn
    if kind == "8bit":
        return layers.Linear8bitLt(_SIZE, _SIZE, bias=False, has_fp16_weights=False)
    return layers.Linear4bit(_SIZE, _SIZE, bias=False)
