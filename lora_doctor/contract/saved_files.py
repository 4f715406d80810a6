"""Readings from files that were really written: adapters saved and loaded, merged models too.

Runs in the process that holds the model; torch, transformers and PEFT are imported inside
functions. What is read goes into :class:`lora_doctor.results.round_trip.Saving`.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_doctor.contract.adapters import active_adapters, auxiliary_classes
from lora_doctor.model.module_path import pattern_of
from lora_doctor.model.peft_models import peft_models
from lora_doctor.nn.embeddings import input_embeddings
from lora_doctor.nn.pristine import frozen_by_its_class
from lora_doctor.nn.rebinding import deep_copy
from lora_doctor.results.round_trip import AutoLoading, TiedPart, Vocabulary
from lora_doctor.sandbox.temporary import temporary_folder
from lora_doctor.text import clean_path, one_line

DEFAULT_ADAPTER = "default"


def wrapped_at(model: Any) -> tuple[str, ...]:
    """Paths of every ``PeftModel``, one empty path when it is the model itself. A mixed one, which
    PEFT cannot save, is none."""
    import peft

    parts = peft_models(model)
    return tuple(path for path, part in parts.items() if isinstance(part, peft.PeftModel))


def save_and_reload(model: Any, base: Any, paths: tuple[str, ...], folder: Path) -> Any:
    """Save every ``PeftModel`` of ``model``, at ``paths``, into ``folder``, and load it onto
    ``base``; one goes into the folder itself, several go into folders of their own.

    ``base``: a model of the same make with the weights from before the training; it is used up.
    Returns the model with the loaded adapters; raises what PEFT raises.
    """
    for path in paths:
        base = _reloaded(model, base, path, folder / path if len(paths) > 1 else folder)
    return base


def _reloaded(model: Any, base: Any, path: str, folder: Path) -> Any:
    import peft

    from lora_doctor.model.training_setup import bare

    inner = model.get_submodule(path) if path else model
    inner.save_pretrained(str(folder))
    active = active_adapters(inner) or (DEFAULT_ADAPTER,)
    first, *others = [(str(folder if name == DEFAULT_ADAPTER else folder / name), name)
                      for name in active]  # fmt: skip
    onto = bare(base.get_submodule(path)) if path else base
    reloaded = peft.PeftModel.from_pretrained(onto, first[0], adapter_name=first[1])
    for saved, name in others:
        reloaded.load_adapter(saved, adapter_name=name)
    if others:  # PEFT's model of a single adapter has no such call; the one inside takes several
        reloaded.base_model.set_adapter(list(active))
    _as_trained(inner, reloaded)
    return _with_part(base, path, reloaded) if path else reloaded


def _as_trained(model: Any, reloaded: Any) -> None:
    """Give trained weights the dtype that they were trained in: TRL trains QLoRA's in bfloat16, and
    PEFT loads them in float32, which holds the same values and rounds otherwise."""
    own = dict(model.named_parameters())
    for name, weight in reloaded.named_parameters():
        trained = own.get(name)
        if trained is not None and trained.requires_grad and weight.is_floating_point():
            weight.data = weight.data.to(trained.dtype)


def merged_copy(model: Any, paths: tuple[str, ...]) -> Any:
    """A copy of ``model`` with the adapters of every ``PeftModel``, at ``paths``, merged."""
    model.zero_grad(set_to_none=True)
    twin = deep_copy(model)
    for path in paths:
        if not path:
            return twin.merge_and_unload()
        twin = _with_part(twin, path, twin.get_submodule(path).merge_and_unload())
    return twin


def _with_part(model: Any, path: str, part: Any) -> Any:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, name, part)
    return model


# --- weights that did not come back ---------------------------------------------------------------


def lost_modules(model: Any, reloaded: Any, layers: list[Any]) -> tuple[tuple[str, ...], int, int]:
    """Trained weights outside the adapters that the reloaded model has otherwise.

    Returns patterns of the whole modules that they make up, and of single parameters that stand
    beside every PEFT model; how many elements these hold, and how many more were lost next to
    adapters or next to frozen weights.
    """
    import torch

    own = {id(parameter.tensor) for layer in layers for parameter in layer.parameters}
    again = dict(reloaded.named_parameters())
    lost: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in own:
            continue
        other = again.get(name)
        if (
            other is None
            or other.shape != parameter.shape
            or not torch.equal(parameter.detach().float(), other.detach().float())
        ):
            lost[name] = int(parameter.numel())
    whole = _whole_modules(model, lambda name, _: name in lost)
    parts = list(peft_models(model))
    alone = [] if "" in parts else [name for name in lost if not _inside(name, [*whole, *parts])]
    inside = {name: size for name, size in lost.items() if _inside(name, whole) or name in alone}
    paths = tuple(dict.fromkeys(pattern_of(clean_path(path)) for path in [*whole, *alone]))
    elements = sum(inside.values())
    return paths, elements, sum(lost.values()) - elements


def lost_statistics(model: Any, reloaded: Any) -> tuple[str, ...]:
    """Patterns of modules whose running statistics the training moved and the reloaded model has
    otherwise: they are buffers, no parameters, and no adapter holds them."""
    import torch

    again = dict(reloaded.named_buffers())
    paths = [
        path
        for path, module in model.named_modules()
        if getattr(module, "track_running_stats", False)
        and any(
            again.get(f"{path}.{key}") is not None
            and not torch.equal(value, again[f"{path}.{key}"].to(value.device))
            for key, value in module._buffers.items()
            if value is not None and value.is_floating_point()
        )
    ]
    return tuple(dict.fromkeys(pattern_of(clean_path(path)) for path in paths))


def chosen_trainable(model: Any) -> dict[str, Any]:
    """The modules that somebody left trainable when they froze most of the model, by path.

    A model as it is made or loaded is trainable as a whole, or but for what its class freezes (a
    position table; in IDEFICS most of the model): that says nothing of what is meant.
    """
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += int(parameter.numel())
    if sizes[True] >= sizes[False] or frozen_by_its_class(model):
        return {}
    whole = _whole_modules(model, lambda _, parameter: parameter.requires_grad)
    return {path: model.get_submodule(path) for path in whole}


def frozen_by_wrapping(model: Any, before: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """Which of the modules ``before`` are frozen now and in no way trained or saved.

    ``before``: of the model before the adapters were put on, which changed it in place. A module
    in ``modules_to_save`` is trained as a copy; one with adapters inside is trained by them.
    """
    copied = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, auxiliary_classes())
        for parameter in module.parameters()
    }
    under = {id(module.base_layer) for module in model.modules() if hasattr(module, "base_layer")}
    elements: dict[str, int] = {}
    for path, module in before.items():
        adapted = any(
            hasattr(inner, "base_layer") or id(inner) in under for inner in module.modules()
        )
        own = [
            parameter
            for parameter in module.parameters()
            if not parameter.requires_grad and id(parameter) not in copied
        ]
        if own and not adapted:
            pattern = pattern_of(path)
            elements[pattern] = elements.get(pattern, 0) + sum(int(p.numel()) for p in own)
    return tuple(elements), sum(elements.values())


def _whole_modules(model: Any, meant: Callable[[str, Any], bool]) -> list[str]:
    """Paths of the largest modules all of whose parameters are ``meant`` (name and tensor)."""
    flags: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        good = meant(name, parameter)
        parts = name.split(".")[:-1]
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            flags[path] = flags.get(path, True) and good
    return [
        path
        for path, good in flags.items()
        if good and not flags.get(path.rpartition(".")[0], False)
    ]


def _inside(name: str, paths: list[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


# --- tied weights ---------------------------------------------------------------------------------


def tied_parts(model: Any, layers: list[Any]) -> tuple[TiedPart, ...]:
    """Layers under the recipe whose base weight is also another module's: merging into one
    changes the other, a trained copy parts from it."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(_owner(name))
    adapted = {layer.path for layer in layers if not isinstance(layer.module, auxiliary_classes())}
    whole = [layer.path for layer in layers if layer.path not in adapted]
    parts = []
    for names in owners.values():
        for path in sorted(names):
            # A copy may hold the tied layer somewhere inside: BERT's `cls` has the decoder.
            around = next((own for own in whole if f"{path}.".startswith(f"{own}.")), None)
            twins = [
                name
                for name in sorted(names - {path})
                if around is None or not name.startswith(f"{around}.")
            ]
            if twins and (path in adapted or around is not None):
                how = "adapter" if path in adapted else "modules_to_save"
                parts.append(TiedPart(path, twins[0], how))  # type: ignore[arg-type]
    return tuple(parts)


def _owner(name: str) -> str:
    """Path of the layer that a parameter belongs to in the model without PEFT."""
    return clean_path(name).rpartition(".")[0].replace(".original_module", "")


def merged_through_files(merged: Any) -> tuple[Any, str]:
    """The merged model saved and loaded with its own class; or ``None`` and the reason."""
    if not all(hasattr(merged, name) for name in ("save_pretrained", "from_pretrained", "config")):
        return None, "the model has no save_pretrained of transformers"
    from lora_doctor.model.training_setup import dtype_argument

    first = next(merged.parameters())
    try:
        with (
            temporary_folder() as folder,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            merged.save_pretrained(folder, safe_serialization=True)
            loaded = type(merged).from_pretrained(folder, **{dtype_argument(): first.dtype})
    except Exception as error:  # noqa: BLE001 - classes of the user's own may not be loadable so
        return None, f"{type(error).__name__}: {one_line(error, 200)}"
    return loaded.to(first.device), ""


# --- the class that PEFT loads by itself ----------------------------------------------------------


def auto_loading(model: Any, fresh: Callable[[], Any], folder: Path) -> AutoLoading | None:
    """What PEFT's auto class for this wrapper makes of ``folder``; ``None`` when it loads the
    class of the model, or there is no such auto class.

    Which class transformers would take is asked of its mapping; only where that is another one
    are the base model and the adapters really loaded.
    """
    auto, base_class = _auto_class(model), type(model.get_base_model())
    config = getattr(model.get_base_model(), "config", None)
    if auto is None or config is None:
        return None
    target: Any = auto._target_class
    mapping: Any = target._model_mapping
    if type(config) in mapping:
        taken = mapping[type(config)]
        if base_class in (taken if isinstance(taken, (tuple, list)) else (taken,)):
            return None
    if target.__name__ in (getattr(config, "auto_map", None) or {}):
        return None  # code of the repository is what it loads
    base = fresh()
    if not hasattr(base, "save_pretrained"):
        return None
    try:
        with temporary_folder() as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base.save_pretrained(place, safe_serialization=True)
            _name_base(folder, place)
            loaded = auto.from_pretrained(str(folder))
    except Exception as error:  # noqa: BLE001 - what PEFT and transformers refuse is the evidence
        text = f"{type(error).__name__}: {one_line(error, 240)}"
        return AutoLoading(auto.__name__, base_class.__name__, error=text)
    found = type(loaded.get_base_model())
    if found is base_class:
        return None
    return AutoLoading(auto.__name__, base_class.__name__, loaded=found.__name__)


def _auto_class(model: Any) -> Any:
    """PEFT's auto class that makes wrappers of this class out of a base that it loads itself."""
    auto = importlib.import_module("peft.auto")
    for cls in vars(auto).values():
        wanted = getattr(cls, "_target_peft_class", None)
        if wanted is type(model) and getattr(cls, "_target_class", None) is not None:
            return cls
    return None


def _name_base(folder: Path, base: str) -> None:
    """Let the adapter config say that its base model lies in ``base``."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config.update(base_model_name_or_path=base, revision=None)
    path.write_text(json.dumps(config), "utf-8")


# --- embeddings of another size than the checkpoint's ---------------------------------------------


def vocabulary(model: Any, folder: Path) -> Vocabulary | None:
    """Embeddings that were resized since the checkpoint was loaded; ``None`` when they were not,
    or the checkpoint is no local folder, so that nothing can be compared."""
    import peft

    base = model.get_base_model()
    config = getattr(base, "config", None)
    place = str(getattr(config, "_name_or_path", "") or "")
    if not place or not (Path(place) / "config.json").is_file():
        return None
    embeddings = input_embeddings(base)
    rows = _rows(embeddings)
    # The config first: the weights are read again only where it says another number.
    if rows is None or rows == _vocabulary_size(config, place):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            original = type(base).from_pretrained(
                place, local_files_only=True, use_safetensors=True
            )
    except Exception:  # noqa: BLE001 - not what the class loads: then there is nothing to compare
        return None
    first = _rows(input_embeddings(original))
    if first is None or first == rows:
        return None
    name = next((path for path, part in base.named_modules() if part is embeddings), "")
    saved = any(_is_of(key, name) for key in _saved_names(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = peft.PeftModel.from_pretrained(original, str(folder))
    except Exception as error:  # noqa: BLE001 - what PEFT raises is the evidence
        outcome = f"{type(error).__name__}: {one_line(error, 200)}"
    else:
        outcome = f"loads without a word, with {_rows(loaded.get_input_embeddings())} rows"
    return Vocabulary(rows, first, place, name, saved, outcome)


def _vocabulary_size(config: Any, place: str) -> int | None:
    """What the config in this folder says; ``None`` when it does not, or cannot be read."""
    try:
        first = type(config).from_pretrained(place)
    except Exception:  # noqa: BLE001 - a config that its class refuses says nothing
        return None
    inner = getattr(first, "text_config", None)
    size = getattr(first, "vocab_size", None) or getattr(inner, "vocab_size", None)
    return size if isinstance(size, int) else None


def _rows(embeddings: Any) -> int | None:
    inner = getattr(embeddings, "original_module", embeddings)
    weight = getattr(getattr(inner, "base_layer", inner), "weight", None)
    return int(weight.shape[0]) if weight is not None and weight.dim() == 2 else None


def _is_of(key: str, module: str) -> bool:
    return bool(module) and f".{clean_path(module)}.weight" in f".{key}".replace(
        ".modules_to_save", ""
    ).replace(".base_layer", "")


def _saved_names(folder: Path) -> list[str]:
    """Names of the tensors in an adapter folder that we wrote ourselves."""
    from safetensors import safe_open

    names: list[str] = []
    for path in folder.glob("adapter_model.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            names += list(file.keys())
    return names
