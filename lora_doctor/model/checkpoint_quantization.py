"""What the quantization of a checkpoint means here: the installed transformers' own quantizer is
made and asked, and PEFT is given the layers that it puts in.

Runs in a child process; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lora_doctor.errors import InputError
from lora_doctor.model import training_setup
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.injection import inject, plain_wrap
from lora_doctor.model.library_answers import as_with_a_gpu, heard
from lora_doctor.model.loading import peft_config
from lora_doctor.model.merging_refused import merging_refused
from lora_doctor.model.quantization import kind_of, of_checkpoint
from lora_doctor.recipe.keys import check_value
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.checkpoint_quantization import CheckpointQuantization, ReplacedLayers
from lora_doctor.results.error_report import ErrorReport

_SHOWN = 3
#: How libraries say that something is to be installed, where they do not raise an ImportError.
_INSTALL = re.compile(r"pip install|not installed|requires? .{1,60} to be installed|git clone")
#: Keys of a recipe that ``quantization_config`` of a bitsandbytes checkpoint decides.
_BITSANDBYTES = (
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype",
    "bnb_4bit_use_double_quant", "llm_int8_skip_modules",
)  # fmt: skip


def stored(config: Any) -> dict[str, Any] | None:
    """``quantization_config`` of a checkpoint's transformers config, or of its text part; ``None``
    for one that is not quantized."""
    for part in (config, getattr(config, "text_config", None)):
        held = getattr(part, "quantization_config", None)
        if held is not None:  # an empty one is taken for a quantization too, and refused
            return dict(held) if isinstance(held, Mapping) else dict(held.to_dict())
    return None


def as_loaded(recipe: Recipe, config: Any) -> Recipe:
    """The recipe with what a bitsandbytes checkpoint decides: the model comes out of loading in
    4 or 8 bits, whether or not the recipe says so, and its settings win."""
    values = of_checkpoint(config)
    if values is None:
        return recipe
    kind = kind_of(values)
    decided: dict[str, Any] = {}
    for key in _BITSANDBYTES[2:]:
        if values.get(key) is not None:
            with contextlib.suppress(InputError):  # transformers says what is wrong with it
                decided[key] = check_value(key, values[key], "config.json")
    decided["load_in_4bit"], decided["load_in_8bit"] = kind == "4bit", kind == "8bit"
    others = {key: value for key, value in recipe.values.items() if key not in _BITSANDBYTES}
    origins = {key: recipe.origins[key] for key in others if key in recipe.origins}
    return Recipe(others, origins, recipe.complete).override(decided, "checkpoint")


def quantizers() -> Any:
    """transformers' ``quantizers.auto``; ``None`` before 4.38, which had no such classes."""
    try:
        return importlib.import_module("transformers.quantizers.auto")
    except ImportError:
        return None


def other_than_bitsandbytes(config: Any, recipe: Recipe) -> dict[str, Any] | None:
    """The stored quantization in which the recipe leaves the weights, unless that is
    bitsandbytes', which is a recipe of its own: see :func:`as_loaded`."""
    values = stored(config)
    if values is None or kind_of(values):
        return None
    return None if recipe.get("dequantize") and dequantizing_argument(values) else values


def can_dequantize(values: Mapping[str, Any]) -> bool:
    """Whether this release loads such a checkpoint in floating point when it is asked to."""
    return bool(dequantizing_argument(values))


def dequantizing_argument(values: Mapping[str, Any]) -> dict[str, bool]:
    """What the config class of this quantization is handed so that the weights are turned into
    floating point while they are loaded; empty where this release cannot."""
    cls = _class_in("AUTO_QUANTIZATION_CONFIG_MAPPING", values)
    if cls is None:
        return {}
    parameters = inspect.signature(cls.__init__).parameters
    if "dequantize" in parameters:
        return {"dequantize": True}
    # compressed-tensors before transformers 5: its layers decompress for good while loading.
    return {"run_compressed": False} if "run_compressed" in parameters else {}


def config_of(values: Mapping[str, Any]) -> Any:
    """The quantization config object of the installed transformers; raises what it raises."""
    return quantizers().AutoQuantizationConfig.from_dict(dict(values))


def dequantizing(values: Mapping[str, Any]) -> Any:
    """The ``quantization_config`` to hand to ``from_pretrained`` so that it dequantizes, such as
    ``Mxfp4Config(dequantize=True)``: it is merged with the checkpoint's own."""
    return _class_in("AUTO_QUANTIZATION_CONFIG_MAPPING", values)(**dequantizing_argument(values))


def dequantizing_checkpoint(name: str) -> Any:
    """:func:`dequantizing` for the checkpoint of a folder or a hub id (``id@revision``).

    Raises:
        InputError: it is not quantized, or this transformers cannot load it in floating point.
    """
    from transformers import PretrainedConfig

    path, options = name, {}
    if not Path(name).is_dir() and "@" in name:
        path, _, options["revision"] = name.partition("@")
    values, _ = PretrainedConfig.get_config_dict(path, **options)
    held = values.get("quantization_config") or {}
    if not held or not dequantizing_argument(held):
        why = "has no quantization_config" if not held else "cannot be dequantized while it loads"
        raise InputError(f"recipe: dequantize: {name} {why} with this transformers; remove the key")
    return dequantizing(held)


def quantizer_class(values: Mapping[str, Any]) -> Any:
    """The installed transformers' quantizer of this method, ``None`` where it has none."""
    return _class_in("AUTO_QUANTIZER_MAPPING", values)


def _class_in(mapping: str, values: Mapping[str, Any]) -> Any:
    """The class that transformers has for a method, ``None`` where it has none."""
    kind = kind_of(values)
    name = f"bitsandbytes_{kind}" if kind else values.get("quant_method")
    return getattr(quantizers(), mapping, {}).get(name)


def describe(model: Any, config: Any, recipe: Recipe, asked: Recipe) -> CheckpointQuantization:
    """What the libraries say of the checkpoint's quantization.

    Args:
        model: the class at full size on the meta device; it is used up.
        config: its transformers config, which has a ``quantization_config``.
        recipe: with its open keys filled.
        asked: as the user gave it.
    """
    values = stored(config) or {}
    method = str(values.get("quant_method") or "")
    if kind_of(values):
        method = "bitsandbytes"
    library = quantizers()
    if library is None:
        return _before_quantizers(values, method)
    with heard() as said:
        known = _known(library, values)
    if not known:
        words = said.text or "transformers has no quantizer of this name"
        return CheckpointQuantization(method, False, unasked=words)
    found = _asked(values, method, recipe)
    found = _with_request(found, library, values, asked)
    if found.dequantized or kind_of(values) or found.trainable is False:
        return found
    return _with_layers(found, model, values, recipe)


def _before_quantizers(values: Mapping[str, Any], method: str) -> CheckpointQuantization:
    """transformers before 4.38 knows three methods by name and has nobody to ask about them."""
    utilities = importlib.import_module("transformers.utils.quantization_config")
    methods = [item.value for item in getattr(utilities, "QuantizationMethod", ())]
    known = method in methods or bool(kind_of(values))
    return CheckpointQuantization(
        method, known, unasked="this transformers has no quantizer classes that could be asked"
    )


def _known(library: Any, values: Mapping[str, Any]) -> bool:
    supports = getattr(library.AutoHfQuantizer, "supports_quant_method", None)
    if supports is None:  # before 4.51 an unknown method raises when the config is made
        mapping: Any = library.AUTO_QUANTIZATION_CONFIG_MAPPING
        return bool(kind_of(values)) or values.get("quant_method") in mapping
    try:
        return bool(supports(dict(values)))
    except ValueError as error:  # it names no method
        logging.getLogger("transformers").warning(str(error))
        return False


@dataclass(frozen=True)
class _Answer:
    """What one quantizer said of itself."""

    quantizer: Any = None
    error: ErrorReport | None = None
    missing: bool = False
    trainable: bool | None = None
    words: str = ""
    falls_back: str = ""


def _asked(values: Mapping[str, Any], method: str, recipe: Recipe) -> CheckpointQuantization:
    here = _ask(values, "cpu")
    with as_with_a_gpu():
        there = _ask(values, "cuda")
    made = there.quantizer or here.quantizer
    trainable = there.trainable if there.trainable is not None else here.trainable
    dequantizes = _dequantizes(values)
    wanted = bool(recipe.get("dequantize"))
    return CheckpointQuantization(
        method,
        known=True,
        config_class="" if made is None else type(made.quantization_config).__name__,
        trainable=trainable,
        trainable_words=there.words or here.words,
        dequantizes=dequantizes,
        dequantizing=_dequantizing_in_words(values),
        dequantized=wanted and dequantizes == "loading",
        falls_back=there.falls_back,
        falls_back_here=here.falls_back,
        error_here=here.error,
        error_with_gpu=there.error,
        package_missing=there.missing,
    )


def _ask(values: Mapping[str, Any], device: str) -> _Answer:
    """Make the quantizer as ``from_pretrained`` does, let it look around, and ask it."""
    import torch

    if device == "cpu" and torch.cuda.is_available():
        device = "cuda"
    quantizer = None
    with heard() as said:
        try:
            quantizer = quantizers().AutoHfQuantizer.from_config(
                config_of(values), pre_quantized=True
            )
            before = getattr(quantizer.quantization_config, "dequantize", False)
            place = {"": 0 if device == "cuda" else device}
            quantizer.validate_environment(device_map=place, weights_only=True)
            after = getattr(quantizer.quantization_config, "dequantize", False)
        except Exception as error:  # noqa: BLE001 - what it raises is the answer
            trainable = None if quantizer is None else _trainable(quantizer)
            return _Answer(
                quantizer, library_error(error), _is_missing(error), trainable, words=said.text
            )
        changed = (said.text or "it dequantizes the weights") if after and not before else ""
    with heard() as said:
        trainable = _trainable(quantizer)
    return _Answer(quantizer, None, False, trainable, said.text, changed)


def _trainable(quantizer: Any) -> bool | None:
    try:
        return bool(quantizer.is_trainable)
    except Exception:  # noqa: BLE001 - it asks a package that is not there
        return None


def _dequantizes(values: Mapping[str, Any]) -> Literal["loading", "afterwards", "never"]:
    if dequantizing_argument(values):
        return "loading"
    base = importlib.import_module("transformers.quantizers.base").HfQuantizer
    own = getattr(quantizer_class(values), "_dequantize", None)
    return "never" if own in (None, getattr(base, "_dequantize", None)) else "afterwards"


def _dequantizing_in_words(values: Mapping[str, Any]) -> str:
    options = ", ".join(f"{name}={value}" for name, value in dequantizing_argument(values).items())
    cls = _class_in("AUTO_QUANTIZATION_CONFIG_MAPPING", values)
    return f"{cls.__name__}({options})" if options else ""


def _is_missing(error: BaseException) -> bool:
    """Whether an exception says that a package has to be installed. fbgemm raises an ImportError
    for a GPU as well."""
    text = str(error)
    if isinstance(error, ImportError):
        return _INSTALL.search(text) is not None or "GPU" not in text
    return _INSTALL.search(text) is not None


def _with_request(
    found: CheckpointQuantization, library: Any, values: Mapping[str, Any], asked: Recipe
) -> CheckpointQuantization:
    """What transformers makes of the recipe's own ``load_in_4bit`` or ``load_in_8bit``."""
    if asked.quantized is None or asked.origins.get(f"load_in_{asked.quantized}") == "checkpoint":
        return found
    with warnings.catch_warnings(record=True) as caught, heard():
        warnings.simplefilter("always")
        try:
            library.AutoHfQuantizer.merge_quantization_configs(
                dict(values), training_setup.quantization_config(asked)
            )
        except Exception as error:  # noqa: BLE001 - what it raises is the answer
            return replace(found, request_error=library_error(error))
    said = " ".join(str(item.message) for item in caught)
    return replace(found, request_ignored=said or "transformers says nothing about it")


def _with_layers(
    found: CheckpointQuantization, model: Any, values: Mapping[str, Any], recipe: Recipe
) -> CheckpointQuantization:
    """Let the quantizer put its layers in, run one, and let PEFT put the adapters on them."""
    with as_with_a_gpu():
        quantizer = _ask(values, "cuda").quantizer
    if quantizer is None or found.error_with_gpu is not None:
        return found
    before = {path: _looks(module) for path, module in model.named_modules()}
    try:
        with heard():
            quantizer.preprocess_model(
                model, dtype=None, device_map=None, checkpoint_files=[], config=model.config
            )
    except Exception as error:  # noqa: BLE001 - the backend is not there, or wants real weights
        seen = library_error(error)
        if _is_missing(error):
            return replace(found, error_with_gpu=seen, package_missing=True)
        return replace(found, unasked=f"its layers could not be built here: {seen}")
    layers, first = _replaced(model, before)
    if not layers:
        return replace(
            found,
            weights_dropped=_loads_nothing(quantizer),
            unasked="its layers are made while weights are loaded",
        )
    found = replace(found, layers=layers)
    missing = _missing_in_forward(first)
    if missing is not None:
        found = replace(found, layer_error=missing, package_missing=True)
    injected = inject(model, recipe).result
    found = replace(found, injection_error=injected.error)
    if injected.error is not None or injected.not_made:
        return found
    new = {type(module) for module in model.modules()} - {cls for cls, _ in before.values()}
    wrapped = plain_wrap(model, peft_config(recipe))
    return replace(found, merging_error=merging_refused(wrapped, frozenset(new)))


def _loads_nothing(quantizer: Any) -> bool:
    """Whether neither a layer nor a conversion takes the packed weights of a checkpoint: they are
    unexpected then, and the layers that lack a weight get random ones."""
    convert = getattr(quantizer, "get_weight_conversions", None)
    if convert is None:  # transformers 4 asks the quantizer about each tensor
        return False
    try:
        return not convert()
    except Exception:  # noqa: BLE001 - it needs the checkpoint's files for an answer
        return False


def _looks(module: Any) -> tuple[Any, tuple[str, ...]]:
    return type(module), tuple(name for name, _ in module.named_parameters(recurse=False))


def _replaced(
    model: Any, before: Mapping[str, tuple[Any, tuple[str, ...]]]
) -> tuple[tuple[ReplacedLayers, ...], Any]:
    """Layers that the quantizer has made or changed, alike ones together, and the first one."""
    kinds: dict[tuple[Any, tuple[str, ...]], list[str]] = {}
    first = None
    for path, module in model.named_modules():
        looks = _looks(module)
        if path in before and before[path] != looks:
            kinds.setdefault(looks, []).append(path)
            first = module if first is None else first
    layers = tuple(
        ReplacedLayers(cls.__name__, cls.__module__, parameters, len(paths), tuple(paths[:_SHOWN]))
        for (cls, parameters), paths in kinds.items()
    )
    return layers, first


def _missing_in_forward(layer: Any) -> ErrorReport | None:
    """What a forward of the layer on the meta device says is not installed; some quantizers load
    their kernels only there."""
    import torch

    features = getattr(layer, "in_features", None)
    if not isinstance(features, int):
        return None
    try:
        with torch.no_grad(), heard():
            layer(torch.empty(2, features, device="meta", dtype=torch.bfloat16))
    except ImportError as error:
        return library_error(error) if _is_missing(error) else None
    except Exception:  # noqa: BLE001 - a kernel cannot run on the meta device, which says nothing
        return None
    return None
