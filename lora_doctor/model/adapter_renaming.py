"""Under which names more of a saved adapter would land: tried on the modules of the real model.

Nothing is known by heart about a model: names that wrappers leave are taken off, the renames are
those that the installed transformers has for this class, and a prefix is read off the modules that
end alike.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_doctor.results.adapter_loading import Renaming
from lora_doctor.results.injection import RenamedTensor
from lora_doctor.static.weights import Tensor

Rename = Callable[[str], str]

#: What PEFT puts in front of every path of the base model.
_PEFT_PREFIX = "base_model.model."
#: Path segments by which torch's wrappers name what they hold: DataParallel and
#: DistributedDataParallel, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: How the cause begins where a prefix was read off the modules of the model.
_GUESSED = "the layers stand"
#: Layers whose names are compared with those of the model when a prefix is looked for.
_SAMPLES = 4


@dataclass(frozen=True)
class Key:
    """The name of a tensor in an adapter file: the path of the layer, and what it is of the
    adapter (``lora_A.weight``); of a module that is saved whole, ``tail`` is the parameter."""

    path: str
    tail: str
    is_adapter: bool

    @property
    def name(self) -> str:
        return f"{_PEFT_PREFIX}{self.path}.{self.tail}"


class Places:
    """The modules and parameters of a model, and whether a tensor has a place among them."""

    def __init__(self, model: Any) -> None:
        self.modules = dict(model.named_modules())
        self.parameters = dict(model.named_parameters(remove_duplicate=False))

    def has(self, key: Key, tensor: Tensor) -> bool:
        """Whether the layer is there, and as wide as the tensor needs it."""
        if not key.is_adapter:
            value = self.parameters.get(f"{key.path}.{key.tail}")
            return value is not None and tuple(value.shape) == tensor.shape
        layer = self.modules.get(key.path.removesuffix(".base_layer"))
        return layer is not None and _is_as_wide(layer, key.tail, tensor.shape)


def _is_as_wide(layer: Any, tail: str, shape: tuple[int, ...]) -> bool:
    """LoRA's A is ``[rank, in]`` and B ``[out, rank]``; other shapes are PEFT's to judge."""
    inside, outside = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    if len(shape) != 2 or inside is None or outside is None:
        return True
    if tail.startswith("lora_A."):
        return bool(shape[1] == inside)
    return bool(shape[0] == outside) if tail.startswith("lora_B.") else True


def find_renaming(
    model: Any, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Renaming | None:
    """Names under which more tensors have a place in this model than under their own; ``None``
    without any. Whether PEFT loads them is not asked here."""
    places = Places(model)
    mark = adapter_mark(str(config.get("peft_type", "")))
    own = {name: split(name, mark) for name in tensors}
    fitted = {name for name, key in own.items() if _in_peft_form(name, key, places, tensors)}
    if len(fitted) == len(tensors):
        return None
    best: Renaming | None = None
    undecided = False
    for cause, rename in _candidates(model, own, places, tensors):
        new = {name: rename(key) for name, key in own.items()}
        fits = sum(places.has(key, tensors[name]) for name, key in new.items())
        names = {name: key.name for name, key in new.items()}
        if best and fits == best.fits and names != best.names and cause.startswith(_GUESSED):
            undecided = best.cause.startswith(_GUESSED)  # two towers have such layers
        if fits > (best.fits if best else len(fitted)):
            undecided = False
            best = Renaming(
                cause=cause,
                example=_example(names),
                fits=fits,
                fitted=len(fitted),
                names=names,
                config=_config(config, own, new),
            )
    if best is None or undecided or len(set(best.names.values())) < len(tensors):
        return None
    return best


def adapter_mark(peft_type: str) -> str:
    """How PEFT's names of this kind of adapter begin, such as ``lora_``."""
    for place in ("peft.mapping", "peft.utils.save_and_load", "peft.utils"):
        prefixes = getattr(importlib.import_module(place), "PEFT_TYPE_TO_PREFIX_MAPPING", None)
        for kind, prefix in (prefixes or {}).items():
            if getattr(kind, "value", kind) == peft_type.upper():
                return str(prefix)
    return "lora_"


def split(name: str, mark: str) -> Key:
    """The parts of a tensor's name, PEFT's prefix taken off as often as it is there."""
    while name.startswith(_PEFT_PREFIX):
        name = name.removeprefix(_PEFT_PREFIX)
    path, found, tail = name.partition(f".{mark}")
    if found:
        return Key(path, mark + tail, True)
    path, _, tail = name.rpartition(".")
    return Key(path, tail, False)


def _in_peft_form(name: str, key: Key, places: Places, tensors: Mapping[str, Tensor]) -> bool:
    return name == key.name and _plain_tail(key.tail) == key.tail and places.has(key, tensors[name])


def _candidates(
    model: Any, own: Mapping[str, Key], places: Places, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Callable[[Key], Key]]]:
    """Ways to rename, the plainest first, each with its cause in words."""
    leftovers = _leftovers(own)
    plain = (
        f"the names are those of a wrapped model ({leftovers})"
        if leftovers
        else ("the names are not in the form that PEFT saves them in")
    )
    yield plain, _applied(_unwrapped)
    also = f", and they are those of a wrapped model ({leftovers})" if leftovers else ""
    ways: list[Rename] = [_unwrapped]
    renames = transformers_renames(model)
    if renames is not None:
        renamed = _after_unwrapping(renames)
        ways.append(renamed)
        yield f"the names are from before a rename in transformers{also}", _applied(renamed)
    for base in ways:
        for old, new in _prefixes(base, own, places, tensors):
            yield f"{_prefix_words(old, new)}{also}", _applied(_moved(base, old, new))


def _applied(rename: Rename) -> Callable[[Key], Key]:
    def apply(key: Key) -> Key:
        if key.is_adapter:
            return Key(rename(key.path), _plain_tail(key.tail), True)
        path, _, tail = rename(f"{key.path}.{key.tail}").rpartition(".")
        return Key(path, tail, False)

    return apply


def _plain_tail(tail: str) -> str:
    """``lora_A.default.weight`` is ``lora_A.weight`` in a file: a state dict that was saved past
    PEFT has the adapter's name in it."""
    parts = tail.split(".")
    return f"{parts[0]}.weight" if len(parts) == 3 and parts[2] == "weight" else tail


def _unwrapped(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def _after_unwrapping(rename: Rename) -> Rename:
    return lambda path: rename(_unwrapped(path))


def _leftovers(own: Mapping[str, Key]) -> str:
    """The segments of wrappers that occur, as ``module.``."""
    found = {part for key in own.values() for part in key.path.split(".") if part in _WRAPPERS}
    return ", ".join(f"`{part}.`" for part in _WRAPPERS if part in found)


def transformers_renames(model: Any) -> Rename | None:
    """The renames that the installed transformers applies to old checkpoints of this class."""
    patterns: Mapping[str, str] = getattr(model, "_checkpoint_conversion_mapping", None) or {}
    try:
        module = importlib.import_module("transformers.conversion_mapping")
        loading = importlib.import_module("transformers.core_model_loading")
        conversions = module.get_model_conversion_mapping(model)
    except (ImportError, AttributeError):  # a transformers before 5
        conversions = []
    renamings = [one for one in conversions or () if isinstance(one, loading.WeightRenaming)]
    if not patterns and not renamings:
        return None

    def rename(path: str) -> str:
        # They are written for names of weights: some end in a dot.
        name = f"{path}.weight"
        for pattern, replacement in patterns.items():
            name = re.sub(pattern.lstrip("^"), replacement, name, count=1)
        for one in renamings:
            name = str(one.rename_source_key(name)[0])
        return name.removesuffix(".weight")

    return rename


def _prefixes(
    base: Rename, own: Mapping[str, Key], places: Places, tensors: Mapping[str, Tensor]
) -> list[tuple[str, str]]:
    """Prefixes that differ between a tensor's path and a module of the model that ends alike."""
    lost = [
        (name, base(key.path))
        for name, key in own.items()
        if not places.has(Key(base(key.path), key.tail, key.is_adapter), tensors[name])
    ]
    found: dict[tuple[str, str], None] = {}
    for name, path in lost[:: max(1, len(lost) // _SAMPLES)][:_SAMPLES]:
        paths = (
            places.modules
            if own[name].is_adapter
            else {parameter.rpartition(".")[0] for parameter in places.parameters}
        )
        ends = {other: _common_end(path, other) for other in paths if other}
        longest = max(ends.values(), default=0)
        for other, length in ends.items():
            if length == longest and length > 0:
                found[_without_end(path, length), _without_end(other, length)] = None
    return [pair for pair in found if pair[0] != pair[1]]


def _common_end(one: str, other: str) -> int:
    """Segments in which two paths end alike."""
    left, right = one.split(".")[::-1], other.split(".")[::-1]
    count = 0
    while count < min(len(left), len(right)) and left[count] == right[count]:
        count += 1
    return count


def _without_end(path: str, segments: int) -> str:
    return ".".join(path.split(".")[:-segments])


def _moved(base: Rename, old: str, new: str) -> Rename:
    def rename(path: str) -> str:
        path = base(path)
        if old and not path.startswith(f"{old}."):
            return path
        rest = path.removeprefix(f"{old}.") if old else path
        return f"{new}.{rest}" if new else rest

    return rename


def _prefix_words(old: str, new: str) -> str:
    places = [f"`{prefix}`" if prefix else "the model itself" for prefix in (new, old)]
    return f"{_GUESSED} in {places[0]} and not in {places[1]}"


def _example(names: Mapping[str, str]) -> RenamedTensor:
    return next(
        (RenamedTensor(old, new) for old, new in names.items() if old != new),
        RenamedTensor("", ""),
    )


def _config(
    config: Mapping[str, Any], own: Mapping[str, Key], new: Mapping[str, Key]
) -> dict[str, Any]:
    """The entries of the config that name layers, by their new names."""
    changes: dict[str, Any] = {}
    leaves = {
        key.path.rpartition(".")[2]: new[name].path.rpartition(".")[2] for name, key in own.items()
    }
    targets = sorted({new[name].path for name, key in own.items() if key.is_adapter})
    named = config.get("target_modules")
    if isinstance(named, list) and any(leaves.get(item, item) != item for item in named):
        changes["target_modules"] = sorted({leaves.get(item, item) for item in named})
    elif targets and (isinstance(named, str) or any("." in str(item) for item in named or ())):
        changes["target_modules"] = targets
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key)
        if isinstance(pattern, dict) and any(leaves.get(name, name) != name for name in pattern):
            changes[key] = {leaves.get(name, name): value for name, value in pattern.items()}
    return changes


def sequence_of_targets(renaming: Renaming, config: Mapping[str, Any]) -> Sequence[str]:
    """Every layer by its full path, for a model where the short names mean other layers too."""
    mark = adapter_mark(str(config.get("peft_type", "")))
    keys = [split(name, mark) for name in renaming.names.values()]
    return sorted({key.path for key in keys if key.is_adapter})
