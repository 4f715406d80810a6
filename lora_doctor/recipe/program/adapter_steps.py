"""What a program does with several adapters of one model, call by call, as far as its text says."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.program.caught import is_caught
from lora_doctor.recipe.program.objects import (
    class_of,
    is_saved_adapter,
    is_wrap,
    loader_of,
    makers,
    settings_of,
    text_of,
    top,
    wrappers,
)
from lora_doctor.recipe.program.order import one_line
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.adapter_files import AdapterFiles, read_adapter
from lora_doctor.static.named_file import named_folder
from lora_doctor.static.place import CELL, Place
from lora_doctor.static.program.values import Call, NotPlainError, Unknown, Value, constant

#: Methods of a PEFT model that load, make, choose or merge adapters.
_LOADS = "load_adapter"
_ADDS = "add_adapter"
#: A function that gives an adapter the weights of another one.
_SWAPS = "hotswap_adapter"
_METHODS = frozenset(
    {_LOADS, _ADDS, "add_weighted_adapter", "set_adapter", "delete_adapter", "merge_adapter",
     "unmerge_adapter", "merge_and_unload", "unload", "save_pretrained"}
)  # fmt: skip
#: Without one of these a program has one adapter, and what becomes of that is others' concern.
_SEVERAL = frozenset({_LOADS, _ADDS, _SWAPS, "add_weighted_adapter", "delete_adapter"})
#: What is nothing without a saved adapter or a config.
_NEEDS = frozenset({"from_pretrained", "get_peft_model", _LOADS, _ADDS, _SWAPS})
#: Arguments that say how something is read or shown, or on which device.
_ASIDE = frozenset(
    {"is_trainable", "subfolder", "torch_device", "ephemeral_gpu_offload", "autocast_adapter_dtype",
     "low_cpu_mem_usage", "token", "safe_merge", "progressbar", "svd_driver", "save_directory",
     "safe_serialization", "offload_folder", "device_map", "max_memory", "torch_dtype", "dtype",
     "push_to_hub", "repo_id", "revision", "key_mapping", "is_main_process"}
)  # fmt: skip


#: What hands back the model that it is called on.
_SAME = frozenset({"to", "eval", "train", "cuda", "cpu", "half", "bfloat16", "float", "model"})
_INNER = "base_model"


@dataclass(frozen=True)
class AdapterStep:
    """One call that loads, makes, combines, chooses, merges or saves adapters."""

    #: ``from_pretrained``, ``get_peft_model``, or the method of the PEFT model.
    method: str
    #: Where it stands.
    place: Place
    #: Its text, on one line.
    code: str
    #: What it is given, plain values only; without model, folder and config.
    positional: tuple[Any, ...]
    #: The same of what it is given by name.
    keywords: dict[str, Any]
    #: The saved adapter that it loads.
    saved: AdapterFiles | None = None
    #: Dotted name of the new adapter's config class, and its arguments.
    config: tuple[str, dict[str, Any]] | None = None
    #: Whether it is a method of ``model.base_model``, which takes several names where the PEFT
    #: model takes one.
    inner: bool = False

    def to_json(self) -> dict[str, Any]:
        """For the child process."""
        return {
            "method": self.method,
            "positional": list(self.positional),
            "keywords": self.keywords,
            "folder": str(self.saved.folder) if self.saved is not None else None,
            "config": list(self.config) if self.config is not None else None,
            "inner": self.inner,
        }


def adapter_steps(setup: Setup) -> list[AdapterStep]:
    """The calls, up to the first whose text does not say all that decides about it; none where the
    program has one adapter."""
    wrap = _first(setup)
    calls = [call for call in setup.program.calls if wrap is not None and _is_about(call, wrap)]
    if not any(call.method in _SEVERAL for call in calls):
        return []
    alone = len(_wraps(setup)) == 1
    steps: list[AdapterStep] = []
    for call in calls:
        step = _step(call, alone)
        if step is None:
            break
        steps.append(step)
    return steps


def _wraps(setup: Setup) -> list[Call]:
    return [call for call in setup.program.calls if is_wrap(call) or is_saved_adapter(call)]


def _first(setup: Setup) -> Call | None:
    """What puts the first adapter on the model that the set-up is about."""
    wraps = _wraps(setup)
    wrap = wraps[0] if len(wraps) == 1 else setup.roles.wrapper
    if wrap not in wraps or loader_of(wrap.result) is not setup.roles.loader:
        return None
    return wrap


def _is_about(call: Call, wrap: Call) -> bool:
    """Whether a call is one about these adapters, or may be."""
    if call is wrap:
        return True
    if call.method == _SWAPS:
        return next(iter(wrappers(call.value("model", 0))), None) is wrap
    if isinstance(call.receiver, Unknown):
        return call.method in _METHODS - {"save_pretrained"}
    return call.method in _METHODS and next(iter(wrappers(call.receiver)), None) is wrap


def _step(call: Call, alone: bool) -> AdapterStep | None:
    """``None`` where something about the call is not known. ``alone``: the program has one PEFT
    model."""
    inner = _inner(call, alone)
    if not call.certain or call.open is not None or inner is None:
        return None
    if any(is_caught(call, error) for error in (ValueError, TypeError, KeyError, RuntimeError)):
        return None
    places = _places(call)
    saved, config = None, None
    if call.method in ("from_pretrained", _LOADS, _SWAPS):
        saved = _saved(call, *places[-1])
    elif call.method in ("get_peft_model", _ADDS):
        config = _config(call.value(*places[-1]))
    if call.method in _NEEDS and saved is None and config is None:
        return None
    left_out = {number for _, number in places}
    aside = {name for name, _ in places} | _ASIDE
    try:
        positional = tuple(
            constant(one.value) for n, one in enumerate(call.positional) if n not in left_out
        )
        keywords = {
            name: constant(one.value) for name, one in call.keywords.items() if name not in aside
        }
    except NotPlainError:
        return None
    return AdapterStep(
        call.method, call.place, one_line(call), positional, keywords, saved, config, inner
    )


def _inner(call: Call, alone: bool) -> bool | None:
    """Whether the method is that of ``model.base_model``; ``None`` where it is of something else
    that was made of the model, or of what is not known."""
    if call.method in ("from_pretrained", "get_peft_model", _SWAPS):
        return False
    if isinstance(call.receiver, Unknown):
        inside = re.fullmatch(rf"\w+\.{_INNER}", call.receiver.code) is not None
        return True if inside and alone else None
    since = [one.method for one in itertools.takewhile(_is_no_wrap, makers(call.receiver))]
    inside = since[:1] == [_INNER]
    return inside if _SAME.issuperset(since[1:] if inside else since) else None


def _is_no_wrap(call: Call) -> bool:
    return not is_wrap(call) and not is_saved_adapter(call)


def _places(call: Call) -> tuple[tuple[str, int], ...]:
    """Name and position of the arguments that are not plain: the model, and last what is saved or
    the config."""
    if call.method == "from_pretrained" and "Auto" in class_of(call):
        return (("pretrained_model_name_or_path", 0),)
    return {
        "from_pretrained": (("model", 0), ("model_id", 1)),
        "get_peft_model": (("model", 0), ("peft_config", 1)),
        _LOADS: (("model_id", 0),),
        _SWAPS: (("model", 0), ("model_name_or_path", 1)),
        _ADDS: (("peft_config", 1),),
        "save_pretrained": (("save_directory", 0),),
    }.get(call.method, ())


def _saved(call: Call, name: str, position: int) -> AdapterFiles | None:
    """The adapter in a folder here; ``None`` where it is none, or its weights are pickled."""
    text = text_of(call.value(name, position))
    inside = call.value("subfolder")
    if text is None:
        return None
    if inside is not None:
        part = text_of(inside)
        if part is None:
            return None
        text = f"{text}/{part}"
    beside = Path(call.place.file.partition(CELL)[0]).parent
    folder = named_folder(text, (Path(), beside))
    try:
        found = read_adapter(folder) if folder is not None else None
    except InputError:
        return None
    return None if found is None or found.pickled else found


def _config(value: Value | None) -> tuple[str, dict[str, Any]] | None:
    found = settings_of(value)
    if found is None or found.call is None or found.open is not None or found.call.positional:
        return None
    if top(found.call.name) != "peft" or not found.call.method.endswith("Config"):
        return None
    try:
        return found.call.method, {name: constant(found.value(name)) for name in found.names()}
    except NotPlainError:
        return None
