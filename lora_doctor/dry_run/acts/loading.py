"""``from_pretrained`` of every model class: the same class, small, with random weights, through the
user's own keyword arguments."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import constructing, generation, small_models
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.outputs import Redirected
from lora_doctor.dry_run.acts.plain import plain
from lora_doctor.guest.call_sites import caller

#: Where a checkpoint is looked for: nothing of it is so for the small one.
_WHERE = (
    "cache_dir", "force_download", "local_files_only", "token", "use_auth_token", "revision",
    "code_revision", "subfolder", "variant", "use_safetensors", "proxies", "mirror", "state_dict",
    "gguf_file", "from_tf", "from_flax", "resume_download", "max_memory", "offload_folder",
    "offload_state_dict", "offload_buffers", "_commit_hash", "adapter_kwargs", "weights_only",
)  # fmt: skip
#: What a config is looked for by.
_FOR_CONFIG = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder",
               "proxies", "use_auth_token")  # fmt: skip
#: Keyword arguments that say how the model is loaded, and that are told.
_TOLD = (
    "dtype", "torch_dtype", "attn_implementation", "device_map", "load_in_4bit", "load_in_8bit",
    "quantization_config", "num_labels", "use_cache", "trust_remote_code", "revision",
    "low_cpu_mem_usage", "ignore_mismatched_sizes",
)  # fmt: skip


@dataclass
class Loading:
    """One call of ``from_pretrained``: the class, what is asked for, and how."""

    model_class: Any
    name: str
    named: dict[str, Any]
    config: Any
    arguments: tuple[Any, ...] = ()
    asked: dict[str, Any] = field(default_factory=dict)


def prepare(acting: Acting) -> None:
    """Once transformers has its model classes."""
    acting.after("transformers.modeling_utils", lambda module: _models(acting, module))


def _models(acting: Acting, module: ModuleType) -> None:
    places = Redirected(acting)
    inside = threading.local()

    def load(original: Any, model_class: Any, name: Any = None, *more: Any, **named: Any) -> Any:
        nested = getattr(inside, "yes", False)
        inside.yes = True  # models that loading constructs are not constructed by the user
        try:
            if acting.in_contract or nested or name is None or places.is_of_this_run(name):
                return original(places.to_read(name), *more, **named)
            return _small(acting, original, _loading(model_class, str(name), more, named))
        finally:
            inside.yes = nested

    acting.replaced.around(module.PreTrainedModel, "from_pretrained", load)

    def construct(
        original: Any, model: Any, config: Any, more: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        if acting.in_contract or getattr(inside, "yes", False):
            original(model, config, *more, **named)
            return
        inside.yes = True
        try:
            _constructed(acting, original, model, config, (more, named))
        finally:
            inside.yes = False

    constructing.watch(acting, module.PreTrainedModel, construct)
    if "_from_config" not in vars(module.PreTrainedModel):
        return

    def made(original: Any, model_class: Any, config: Any, *more: Any, **named: Any) -> Any:
        nested = getattr(inside, "yes", False)
        nested = nested or constructing.inside_a_model(module.PreTrainedModel)
        if acting.in_contract or nested:
            return original(config, *more, **named)
        inside.yes = True
        try:
            return _from_config(acting, original, model_class, config, (more, named))
        finally:
            inside.yes = False

    acting.replaced.around(module.PreTrainedModel, "_from_config", made)


def _constructed(
    acting: Acting,
    original: Any,
    model: Any,
    config: Any,
    given: tuple[tuple[Any, ...], dict[str, Any]],
) -> None:
    """A model that its class makes of a config, from the shrunk one."""
    place = caller()
    more, named = given
    if more or named:
        kind = type(model).__name__
        acting.note("not-proven", f"{kind} was made with more than its config, and is not shrunk")
        original(model, config, *more, **named)
        return
    shrunk, steps, full = _shrunk_config(acting, type(model), config)
    original(model, shrunk)
    name = str(getattr(config, "_name_or_path", "") or "")
    model.config._name_or_path = name
    call = Loading(type(model), "", {}, config)
    _tell(acting, model, call, place, (steps, full))
    small_models.remember(model, name or type(model).__name__, config)


def _shrunk_config(
    acting: Acting, model_class: Any, config: Any
) -> tuple[Any, tuple[str, ...], str]:
    """The small config, what was changed, and a folder with the full one."""
    with acting.ours():
        small = small_models.of(acting, model_class, config)
        shrunk = type(config).from_pretrained(str(small.folder))
        full = acting.session.models / f"config-{small.folder.name}"
        config.save_pretrained(full)
    for name in ("dtype", "torch_dtype", "_attn_implementation"):
        if name in vars(config):
            setattr(shrunk, name, getattr(config, name))
    return shrunk, small.steps, str(full)


def _from_config(
    acting: Acting,
    original: Any,
    model_class: Any,
    config: Any,
    given: tuple[tuple[Any, ...], dict[str, Any]],
) -> Any:
    """A model that is made with random weights, from the shrunk config."""
    place = caller()
    more, named = given
    asked = {key: plain(_as_mapping(named[key])) for key in _TOLD if key in named}
    shrunk, steps, full = _shrunk_config(acting, model_class, config)
    model = original(shrunk, *more, **named)
    name = str(getattr(config, "_name_or_path", "") or "")
    model.config._name_or_path = name
    # What is told is no checkpoint's: nothing was loaded.
    call = Loading(model_class, "", named, config, more, asked)
    _tell(acting, model, call, place, (steps, full))
    small_models.remember(model, name or type(model).__name__, config)
    return model


def _loading(model_class: Any, name: str, more: tuple[Any, ...], named: dict[str, Any]) -> Loading:
    asked = {key: plain(_as_mapping(named[key])) for key in _TOLD if key in named}
    named = dict(named)
    config = named.pop("config", None)
    if hasattr(config, "to_dict"):
        config = copy.deepcopy(config)
    else:
        looked = {key: value for key, value in named.items() if key in _FOR_CONFIG}
        own = {k: v for k, v in named.items() if k not in (*_WHERE, *_TOLD) or k == "num_labels"}
        config, unused = model_class.config_class.from_pretrained(
            name if config is None else config, return_unused_kwargs=True, **looked, **own
        )
        for key in own:
            if key not in unused:
                named.pop(key, None)
    # Auto classes write it into the config that they hand over.
    held = getattr(config, "_attn_implementation_internal", None)
    if isinstance(held, str) and "attn_implementation" not in named:
        named["attn_implementation"] = asked["attn_implementation"] = held
    return Loading(model_class, name, named, config, more, asked)


def _as_mapping(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else value


def _small(acting: Acting, original: Any, call: Loading) -> Any:
    place = caller()
    info = bool(call.named.get("output_loading_info"))
    stored = getattr(call.config, "quantization_config", None)
    with acting.ours():
        small = small_models.of(acting, call.model_class, call.config)
    named = {key: value for key, value in call.named.items() if key not in _WHERE}
    _devices(acting, named)
    _quantizer(acting, named, stored)
    result = _with_attention(acting, original, str(small.folder), call.arguments, named)
    model = result[0] if info else result
    model.name_or_path = call.name
    model.config._name_or_path = call.name
    looked = {key: value for key, value in call.named.items() if key in _FOR_CONFIG}
    generation.as_published(model, call.name, looked)
    _tell(acting, model, call, place, (small.steps, _folder(call)))
    small_models.remember(model, call.name, call.config)
    return result


def _tell(
    acting: Acting,
    model: Any,
    call: Loading,
    place: Any,
    small: tuple[tuple[str, ...], str | None],
) -> None:
    """What was loaded. ``small``: what was changed in the config, and where the full one lies."""
    steps, folder = small
    stored = getattr(call.config, "quantization_config", None)
    acting.journal.tell(
        "model",
        model_class=type(model).__name__,
        module=type(model).__module__,
        name=call.name,
        folder=folder,
        revision=plain(call.named.get("revision")),
        trust_remote_code=bool(call.named.get("trust_remote_code")) or _is_remote(model),
        asked=call.asked,
        place=None if place is None else vars(place),
        steps=steps,
        dtype=plain(getattr(model, "dtype", None)),
        quantized=bool(getattr(model, "is_quantized", False)),
        attention=plain(getattr(model.config, "_attn_implementation", None)),
        stored_quantization=plain(_as_mapping(stored)),
        object=id(model),
    )


def _folder(call: Loading) -> str | None:
    """Where the config lies: the folder that was given, or the hub's snapshot."""
    if os.path.isdir(call.name):
        return os.path.abspath(os.path.join(call.name, call.named.get("subfolder") or ""))
    from transformers.utils import cached_file

    looked = {key: value for key, value in call.named.items() if key in _FOR_CONFIG}
    try:
        found = cached_file(call.name, "config.json", **{**looked, "local_files_only": True})
    except OSError:
        return None
    return None if found is None else os.path.dirname(found)


def _is_remote(model: Any) -> bool:
    return type(model).__module__.startswith("transformers_modules.")


def _devices(acting: Acting, named: dict[str, Any]) -> None:
    import torch

    asked = named.get("device_map")
    if asked is None or torch.cuda.is_available():
        return
    named["device_map"] = {"": "cpu"}
    if asked not in ("cpu", {"": "cpu"}):
        acting.note("cpu", "this machine has no GPU: cuda was read as cpu", once="cuda")


def _quantizer(acting: Acting, named: dict[str, Any], stored: Any) -> None:
    """A checkpoint that is quantized already is quantized while the small one is loaded."""
    if stored is None or named.get("quantization_config") is not None:
        return
    settings = _as_mapping(stored)
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    method = str(getattr(method, "value", method))
    if method != "bitsandbytes":
        acting.note("not-proven", f"the checkpoint's {method} quantization was not run")
        return
    from transformers import BitsAndBytesConfig

    values = {key: value for key, value in settings.items() if key != "quant_method"}
    named["quantization_config"] = BitsAndBytesConfig.from_dict(values)


def _with_attention(
    acting: Acting, original: Any, folder: str, more: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """Loaded as asked; with another attention where this machine lacks the one of the recipe."""
    asked = named.get("attn_implementation")
    try:
        return original(folder, *more, **named)
    except (ImportError, ValueError) as error:
        if not isinstance(asked, str) or "flash" not in asked or "flash" not in str(error).lower():
            raise
    acting.note("not-proven", f"attn_implementation={asked} cannot run here; sdpa or eager ran")
    del named["attn_implementation"]
    return original(folder, *more, **named)
