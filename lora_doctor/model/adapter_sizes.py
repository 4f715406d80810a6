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
from collections.abc import Collection
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
#: How PEFT says that an initialisation has to be prepared, and by which function.
_PREPARED_BY = re.compile(r"please run `(\w+)` first")
#: Numbers in the layers that are made to try a kind which cannot be tried without; float32.
_MOST_NUMBERS = 1 << 25
#: The same where they are decomposed: a matrix of 1,024 times 1,024 takes a second.
_MOST_DECOMPOSED = 1 << 21


def is_plain_lora(recipe: Recipe) -> bool:
    """LoRA that starts as usual, which fits layers of any size."""
    return recipe.peft_type == "LORA" and not reads_weights(recipe.get("init_lora_weights"))


def reads_weights(start: Any) -> bool:
    """Whether this value of ``init_lora_weights`` is one of those that look at the layer."""
    return isinstance(start, str) and start.lower() != "gaussian"


def preparation(recipe: Recipe) -> str:
    """The function that has to be run on the model before ``get_peft_model`` takes this recipe, as
    PEFT names it when it refuses one layer (``preprocess_corda``); empty where there is none."""
    import torch

    if not reads_weights(recipe.get("init_lora_weights")):
        return ""
    one = torch.nn.ModuleDict({"layer": torch.nn.Linear(8, 8)})
    try:
        small = recipe.override({"r": 2, "rank_pattern": {}}, "argument")
        _put_on(one, peft_config(small), ["layer"])
    except LoraDoctorError:
        raise
    except Exception as error:  # noqa: BLE001 - what PEFT refuses is the answer
        named = _PREPARED_BY.search(str(error))
        return named.group(1) if named else ""
    return ""


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
            empty = _empty_part(wrap_on_meta(thinned, config))
        return empty or initialisation_refused(model, asked)
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


def initialisation_refused(model: Any, config: Any) -> ErrorReport | None:
    """Why PEFT cannot start the adapters as asked on layers of this model's sizes, where that looks
    at the weights (a rank that MiCA does not find in them); ``None`` also where it was not tried:
    large matrices take minutes to decompose, and are not what limits a rank."""
    if not reads_weights(getattr(config, "init_lora_weights", None)):
        return None
    refused = refusal_by_shape(model, config, _MOST_DECOMPOSED)
    return None if refused is None or _PREPARED_BY.search(refused.message) else refused


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


def refusal_by_shape(model: Any, config: Any, most: int = _MOST_NUMBERS) -> ErrorReport | None:
    """The same for a kind that needs numbers: adapters on one linear layer of each shape that the
    targets have; ``None`` also where even the smallest would be too large to make.

    ``most``: numbers in all of them; shapes that would exceed it are left out, the narrow ones
    come first.
    """
    import torch

    modules = dict(model.named_modules())
    mean = meaning(config)
    alike: dict[Any, tuple[str, Any]] = {}
    for path in asked_for(config, Names(model)):
        one = modules.get(path)
        if isinstance(one, torch.nn.Linear):
            # Another rank or block size for some of them counts like another shape.
            shape = (one.in_features, one.out_features, one.bias is not None)
            alike.setdefault((shape, mean(path) if mean else path), (path, one))
    layers = torch.nn.Module()
    paths: list[str] = []
    numbers = 0
    for path, one in sorted(alike.values(), key=lambda item: min(item[1].weight.shape)):
        # Such a kind also keeps a matrix of the input's size.
        numbers += one.in_features * (one.in_features + one.out_features)
        if numbers > most:
            break
        made = torch.nn.Linear(one.in_features, one.out_features, bias=one.bias is not None)
        _at(layers, path, made)
        paths.append(path)
    if not paths:
        return None
    try:
        _put_on(layers, copy.deepcopy(config), paths)
    except Exception as error:  # noqa: BLE001 - what PEFT refuses is the evidence
        return library_error(error) if raised_by_peft(error) else None
    return None


def _at(root: Any, path: str, module: Any) -> None:
    """Put a module into ``root`` under the path that it has in the user's model."""
    import torch

    *blocks, leaf = path.split(".")
    for name in blocks:
        if name not in root._modules:
            root.add_module(name, torch.nn.Module())
        root = root._modules[name]
    root.add_module(leaf, module)


def _put_on(layers: Any, config: Any, paths: Collection[str]) -> None:
    """PEFT puts the adapters on these layers, whatever the config says of a model."""
    import peft

    config.target_modules = set(paths)
    config.task_type = None
    for key in ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
                "target_parameters", "layer_replication", "trainable_token_indices"):  # fmt: skip
        if hasattr(config, key):
            setattr(config, key, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(layers, config)


def _empty_part(wrapped: Any) -> ErrorReport | None:
    """A trainable part of an adapter that is left without elements."""
    for name, value in wrapped.named_parameters():
        if value.requires_grad and not value.numel():
            return ErrorReport("ValueError", f"{name} has no elements", "")
    return None
