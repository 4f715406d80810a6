"""Whether adapters fit the sizes of a model's layers: block sizes that have to divide a width,
ranks that it limits. PEFT is asked on the meta device, with the recipe's own initialisation, which
checks sizes too; a kind that needs numbers is put on one layer of each shape.
"""

from __future__ import annotations

import copy
import inspect
import linecache
import re
import warnings
from pathlib import PurePath
from typing import Any

from lora_doctor.errors import EvidenceError, LoraDoctorError
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.loading import peft_config
from lora_doctor.model.meta_copy import meta_copy
from lora_doctor.model.target_entries import Names, asked_for, meaning
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.error_report import ErrorReport

ADAPTER_NAME = "default"
#: How torch says that a tensor without storage was asked for a number, or met one that has some.
NEEDS_NUMBERS = re.compile(
    r"register_meta|\bmeta'? (tensors?|device|backend|kernel)\b|\bdevices?\b.{0,40}\bmeta\b",
    re.DOTALL | re.IGNORECASE,
)
#: Numbers in the layers that are made to try a kind which cannot be tried without; float32.
_MOST_NUMBERS = 1 << 25


def is_plain_lora(recipe: Recipe) -> bool:
    """LoRA that starts as usual, which fits layers of any size."""
    start = recipe.get("init_lora_weights")
    return recipe.peft_type == "LORA" and (not isinstance(start, str) or start == "gaussian")


def refusal(model: Any, recipe: Recipe) -> ErrorReport | None:
    """Why PEFT does not put the recipe's adapters on layers of this model's sizes, or what of them
    has no elements there; ``None`` where it does, and where it cannot be told.

    ``model`` is only read.
    """
    try:
        config = peft_config(recipe)
        asked = copy.deepcopy(config)
        thinned = meta_copy(model, meaning(config)).model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _empty_part(wrap_on_meta(thinned, config))
    except EvidenceError:  # a model that cannot be copied without its weights
        return None
    except LoraDoctorError:
        raise
    except Exception as error:  # noqa: BLE001 - what PEFT refuses is the evidence
        if NEEDS_NUMBERS.search(str(error)):
            return refusal_by_shape(model, asked)
        return library_error(error) if raised_by_peft(error) else None


def wrap_on_meta(model: Any, config: Any) -> Any:
    """``get_peft_model`` on a meta copy, with the adapters on the meta device; raises what PEFT
    raises."""
    import peft
    import torch

    options: dict[str, Any] = {}
    if "low_cpu_mem_usage" in inspect.signature(peft.get_peft_model).parameters:
        options["low_cpu_mem_usage"] = True
    with torch.device("meta"):
        return peft.get_peft_model(model, config, adapter_name=ADAPTER_NAME, **options)


def raised_by_peft(error: BaseException) -> bool:
    """Whether a ``raise`` of PEFT's own ended it: it objects then to what it was given."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    file = trace.tb_frame.f_code.co_filename
    ends = [linecache.getline(file, trace.tb_lineno + back).strip() for back in (0, -1, -2)]
    return "peft" in PurePath(file).parts and any(line.startswith("raise ") for line in ends)


def refusal_by_shape(model: Any, config: Any) -> ErrorReport | None:
    """The same for a kind that needs numbers: adapters on one linear layer of each shape that the
    targets have; ``None`` also where these would be too large to make."""
    import peft
    import torch

    names = Names(model)
    modules = dict(model.named_modules())
    shapes = {
        (one.in_features, one.out_features, one.bias is not None)
        for path in asked_for(config, names)
        if isinstance(one := modules.get(path), torch.nn.Linear)
    }
    # Such a kind also keeps a matrix of the input's size.
    numbers = sum(width * (width + out) for width, out, _ in shapes)
    if not shapes or numbers > _MOST_NUMBERS:
        return None
    layers = torch.nn.ModuleDict()
    for index, (width, out, bias) in enumerate(sorted(shapes)):
        layers[f"layer{index}"] = torch.nn.utils.skip_init(torch.nn.Linear, width, out, bias=bias)
    asked = copy.deepcopy(config)
    asked.target_modules = set(layers)
    asked.task_type = None
    for key in ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"):
        if hasattr(asked, key):
            setattr(asked, key, None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft.get_peft_model(layers, asked)
    except Exception as error:  # noqa: BLE001 - what PEFT refuses is the evidence
        return library_error(error) if raised_by_peft(error) else None
    return None


def _empty_part(wrapped: Any) -> ErrorReport | None:
    """A trainable part of an adapter that is left without elements."""
    for name, value in wrapped.named_parameters():
        if value.requires_grad and not value.numel():
            return ErrorReport("ValueError", f"{name} has no elements", "")
    return None
