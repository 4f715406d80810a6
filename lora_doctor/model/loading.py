"""From a model source to the class that would be loaded, its config and a module.

Runs in a child process: everything here may import torch and run model code.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_doctor.errors import ConfigError, EvidenceError, FactoryError, InputError, ModelClassError
from lora_doctor.model.attention import attention_here, missing_attention
from lora_doctor.model.auto_classes import (
    auto_classes,
    class_in,
    classes_for,
    is_listed,
    listed_class,
    quiet,
)
from lora_doctor.model.config_part import part_for
from lora_doctor.model.default_config import with_room_for_tokens
from lora_doctor.model.first_config import first_config
from lora_doctor.recipe.keys import WRAPPING_KEYS
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.note import Note
from lora_doctor.results.structure import HeadClass
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.static.installed.missing_package import missing_remedy
from lora_doctor.text import single_line

_GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
#: Entries of a default config that are set before it is given up.
_REPAIRS = 12
#: How torch says that a tensor without storage was asked for a number.
_NEEDS_NUMBERS = re.compile(r"copy out of meta tensor|cannot be called on meta tensors")


class Loader:
    """Finds the config and the class of a model source, and builds modules of it.

    Args:
        source: :meth:`ModelSource.to_json`.
        recipe: ``task_type``, ``model_class``, ``dtype`` and ``attn_implementation`` are read.

    Raises:
        InputError: what the user named does not exist or is not what it should be.
        EvidenceError: it exists, but this environment cannot build it.
    """

    def __init__(self, source: Mapping[str, Any], recipe: Recipe) -> None:
        self.source = source
        self.recipe = recipe
        self.factory_batches: list[dict[str, Any]] | None = None
        self._factory_module: Any = None
        self._whole: Any = None
        self.config: Any = None
        self.model_class: type | None = None
        self.candidates: list[HeadClass] = []
        #: What was set in a default config that its own class cannot be built from.
        self.repairs: tuple[str, ...] = ()
        if source["kind"] == "factory":
            self.loaded_by = source["name"]
            self._factory_module, self.factory_batches = call_factory(source["name"])
            self.config = getattr(self._factory_module, "config", None)
            self.model_class = type(self._factory_module)
        else:
            self.config, self.repairs = load_config(source)
            self._classes = classes_for(self.config, source)
            self.candidates = [
                HeadClass(auto, cls.__name__, task) for auto, cls, task in self._classes
            ]
            self.loaded_by, self.model_class = self._choose_class()
            self._whole, self.config = self.config, part_for(self.model_class, self.config)

    @property
    def model_type(self) -> str | None:
        return getattr(self.config, "model_type", None) or None

    @property
    def native_dtype(self) -> str | None:
        """The dtype the weights were saved in, by the config (text part for composed models)."""
        parts = (self._whole, self.config, getattr(self.config, "text_config", None))
        for config in parts:
            # `torch_dtype` before transformers 4.56, `dtype` after; reading the wrong one warns.
            for key in ("dtype", "torch_dtype"):
                attributes = getattr(config, "__dict__", {})
                value = attributes.get(key, attributes.get("_" + key))
                if value is not None:
                    return str(value).removeprefix("torch.")
        return None

    def not_run(self) -> tuple[Note, ...]:
        """What of the recipe this machine lacks, and what was built in its place."""
        missing = missing_attention(self.recipe, self.model_class)
        text = f"attn_implementation {missing} was not run: this machine lacks it; the class's own"
        return (Note("not-proven", f"{text} choice ran in its place"),) if missing else ()

    def build(self, device: str = "cpu", config: Any = None, dtype: str | None = None) -> Any:
        """An ``nn.Module`` with random weights on ``cpu``, or without storage on ``meta``.

        A factory's own module is returned as it is, whatever the device.

        Raises:
            EvidenceError: the class refuses this config; the text is the class's own.
        """
        if self._factory_module is not None:
            return self._factory_module
        import torch

        assert self.model_class is not None
        options: dict[str, Any] = {}
        attention = attention_here(self.recipe, self.model_class)
        if attention:
            options["attn_implementation"] = attention
        own = config is None and self.source["kind"] == "arch"
        config = copy.deepcopy(self.config if config is None else config)
        from lora_doctor.tiny_model.shrink.config_mending import mend

        try:
            with torch.device(device), quiet():
                model = _from_config(self.model_class, config, options)
        except Exception as error:
            if device == "meta" and _NEEDS_NUMBERS.search(str(error)):
                return self._without_parameters(config, options)
            mended = mend(self.config, error) if own and len(self.repairs) < _REPAIRS else None
            if mended is None:
                raise
            self.config, self.repairs = mended.config, (*self.repairs, *mended.changes)
            return self.build(device, None, dtype)
        if dtype and dtype != "auto":
            model = model.to(getattr(torch, dtype))
        return model

    def _without_parameters(self, config: Any, options: dict[str, Any]) -> Any:
        """On ``meta``, for a class whose ``__init__`` reads numbers out of its buffers (Apertus'
        activations): as ``from_pretrained`` does, parameters lose their storage as they are made,
        and buffers when all is built."""
        from accelerate import init_empty_weights

        assert self.model_class is not None
        with init_empty_weights(), quiet():
            model = _from_config(self.model_class, config, options)
        return model.to("meta")

    def _choose_class(self) -> tuple[str, type]:
        wanted = self.recipe.get("model_class")
        if wanted:
            return self._class_by_name(wanted)
        classes = self._classes
        if not classes:
            raise EvidenceError(
                f"transformers has no model class for model_type {self.model_type!r}; "
                "name one with --class"
            )
        preferred = self._preferred()
        if preferred is not None:
            return preferred
        task = self.recipe.get("task_type")
        named = list(getattr(self.config, "architectures", None) or [])
        fitting = [item for item in classes if item[2] == task] if task else classes
        if task == "SEQ_2_SEQ_LM" and not fitting:
            fitting = [item for item in classes if item[2] == "CAUSAL_LM"]
        if task in _GENERATING:
            # A checkpoint whose class generates is loaded as that class, whichever wrapper is
            # asked for: Whisper with CAUSAL_LM is Whisper, not its decoder alone.
            fitting = [
                item for item in classes if item[2] in _GENERATING and item[1].__name__ in named
            ] or fitting
        for auto, cls, _ in fitting or classes:
            if cls.__name__ in named:
                return auto, cls
        if not task and named:
            own = self._own_class(named[0])
            if own is not None:
                return named[0], own
        auto, cls, _ = (fitting or classes)[0]
        return auto, cls

    def _preferred(self) -> tuple[str, type] | None:
        """The class that a saved adapter was trained on, where this model has it."""
        name = self.source.get("preferred_class")
        for auto, cls, _ in self._classes:
            if cls.__name__ == name:
                return auto, cls
        return None

    def _class_by_name(self, name: str) -> tuple[str, type]:
        for auto, cls, _ in self._classes:
            if name in (auto, cls.__name__):
                return auto, cls
        # Classes that two auto classes share are among the candidates under the first one's name.
        shared = class_in(name, self.config)
        if shared is not None:
            return name, shared
        own = self._own_class(name)
        if own is not None:
            return name, own
        listed = listed_class(name, self.config)
        if listed is not None:
            raise InputError(
                f"{name} lists {self.model_type} as {listed.__name__} and then refuses its config, "
                f"{type(self.config).__name__}, which this transformers has under two names; "
                f"--class {listed.__name__} loads it"
            )
        known = ", ".join(auto_classes(self.config)) or "none"
        if is_listed(name):
            raise ModelClassError(
                f"model_class {name!r}: transformers lists no model_type {self.model_type!r} "
                f"there, but in {known}"
            ) from LookupError(known)
        raise InputError(
            f"model_class {name!r}: not a class of transformers for model_type "
            f"{self.model_type!r}; it has {known}"
        )

    def choice(self) -> str:
        """Which auto class was taken where nobody asked for one and there are others; else empty.
        A checkpoint's own config names its class, which is no choice of ours."""
        if self.recipe.get("model_class") or self.source["kind"] != "arch":
            return ""
        others = [name for name in auto_classes(self.config) if name != self.loaded_by]
        if not others:
            return ""
        return f"taken as {self.loaded_by}; --class chooses another: {', '.join(others)}"

    def _own_class(self, name: str) -> type | None:
        import transformers

        cls = getattr(transformers, name, None) if name.isidentifier() else None
        usable = inspect.isclass(cls) and hasattr(cls, "_from_config")
        config_class = getattr(cls, "config_class", None)
        if usable and (config_class is None or isinstance(self.config, config_class)):
            return cls
        return None


def load_config(source: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The transformers config object of a source (``arch`` default, or a folder's file), and what
    had to be set in a default one."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if source["kind"] == "arch":
        name = source["name"]
        try:
            config_class = CONFIG_MAPPING[name]
        except KeyError:
            raise InputError(f"arch:{name}: this transformers has no such architecture") from None
        try:
            config, changes = first_config(config_class)
            return with_room_for_tokens(config), changes
        except Exception as error:
            raise EvidenceError(
                f"the default config of {name} cannot be made: {single_line(str(error), 300)}",
                remedy=missing_remedy(error),
            ) from error
    folder = source["folder"]
    if folder is None:
        raise EvidenceError(f"{source['name']}: its files are not here")
    remote = _auto_map(folder)
    if remote and "AutoConfig" in remote and not source["trust_remote_code"]:
        raise EvidenceError(
            "the model's classes are code of its repository, which is not run without "
            "--trust-remote-code",
            remedy="trust",
        )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=bool(source["trust_remote_code"]), local_files_only=True
            )
    except Exception as error:
        raise ConfigError(
            f"{Path(folder) / 'config.json'} is refused by transformers: "
            f"{single_line(str(error), 300)}{_behind(error)}",
            remedy=missing_remedy(error),
        ) from error
    for name, value in source.get("entries", {}).items():
        if hasattr(config, name):  # from_pretrained hands it to the config
            setattr(config, name, value)
    return config, ()


def _behind(error: BaseException) -> str:
    """What an import came to its end by, where the exception only says that it did."""
    first = error
    while isinstance(first, ImportError) and first.__cause__ is not None:
        first = first.__cause__
    return "" if first is error else f" ({type(first).__name__}: {single_line(str(first), 200)})"


def unknown_entry(config: Any, source: Mapping[str, Any]) -> str:
    """An entry of the config that a script sets to what its text does not tell; empty where there
    is none, or a whole config of the script's."""
    names = source.get("unknown_entries", ())
    return next((name for name in names if name == "config" or hasattr(config, name)), "")


def resized(model: Any, source: Mapping[str, Any]) -> Any:
    """The model with as many rows of embeddings as the script gives it that names it."""
    rows = source.get("rows")
    if rows:
        known = inspect.signature(model.resize_token_embeddings).parameters
        # The mean of all rows, which newer releases give to the new ones, has no value on meta.
        options = {"mean_resizing": False} if "mean_resizing" in known else {}
        with quiet():
            model.resize_token_embeddings(rows, **options)
    return model


def call_factory(name: str) -> tuple[Any, list[dict[str, Any]] | None]:
    """Call the user's ``package.module:factory``.

    It takes no arguments and returns an ``nn.Module``, or a pair of one and a batch (a mapping of
    forward arguments) or a list of batches. The same may stand in its attribute ``batches``.

    Raises:
        InputError: it cannot be imported, or returns something else.
        FactoryError: it raises; what it raised is the cause.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"MODEL {name!r}: cannot import {module_name}: {type(error).__name__}: "
            f"{single_line(str(error), 300)}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise InputError(f"MODEL {name!r}: {module_name} has no {attribute!r}")
        target = getattr(target, part)
    if not callable(target):
        raise InputError(f"MODEL {name!r}: is not callable; give a function that returns a model")
    batches = getattr(target, "batches", None)
    try:
        result = target()
        batches = batches() if callable(batches) else batches
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise  # whether it is a limit of ours, the parent process knows
        raise FactoryError(
            f"MODEL {name!r}: the factory raised {type(error).__name__}: "
            f"{single_line(str(error), 300)}",
            remedy=missing_remedy(error),
        ) from error
    if isinstance(result, tuple) and len(result) == 2:
        result, batches = result
    if not callable(getattr(result, "named_modules", None)):
        raise InputError(
            f"MODEL {name!r}: the factory returned {type(result).__name__}, not an nn.Module"
        )
    return result, _as_batches(batches, name)


def peft_config(recipe: Recipe) -> Any:
    """The config object of the installed PEFT; raises what PEFT raises.

    ``target_modules`` left out means PEFT's own default for the architecture.
    """
    import peft

    mapping = importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING
    by_name = {getattr(key, "value", key): cls for key, cls in mapping.items()}
    cls = by_name.get(recipe.peft_type)
    if cls is None:
        raise InputError(
            f"peft_type {recipe.peft_type!r}: not known to the installed PEFT {peft.__version__}"
        )
    return cls(**recipe.config_arguments())


def wrap(model: Any, recipe: Recipe, adapter_name: str = "default") -> Any:
    """``get_peft_model`` as a training script calls it; raises what PEFT raises."""
    import peft

    known = inspect.signature(peft.get_peft_model).parameters
    options = {key: recipe.get(key) for key in WRAPPING_KEYS if key in recipe and key in known}
    return peft.get_peft_model(model, peft_config(recipe), adapter_name=adapter_name, **options)


def _from_config(cls: Any, config: Any, options: dict[str, Any]) -> Any:
    if hasattr(cls, "_from_config"):
        return cls._from_config(config, **options)
    return cls(config)


def _auto_map(folder: str) -> Mapping[str, Any]:
    import json

    path = Path(folder) / "config.json"
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    mapping = data.get("auto_map") if isinstance(data, dict) else None
    return mapping if isinstance(mapping, dict) else {}


def _as_batches(batches: Any, name: str) -> list[dict[str, Any]] | None:
    if batches is None:
        return None
    many = [batches] if isinstance(batches, Mapping) else list(batches)
    if not all(isinstance(batch, Mapping) for batch in many):
        raise InputError(
            f"MODEL {name!r}: a batch must be a mapping of forward arguments to tensors"
        )
    return [dict(batch) for batch in many]
