"""The same as ``evidence.loading`` for a model that the user's own code loads: a factory, which is
called twice, or a module in memory, whose checkpoint is named in its config.

``gather`` runs in a child process that has torch, transformers and peft imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_doctor.contract.random_weights import RandomWeights
from lora_doctor.errors import EvidenceError
from lora_doctor.evidence.loading import with_adapters
from lora_doctor.model import training_setup
from lora_doctor.model.loading import Loader, call_factory
from lora_doctor.model.random_weights import Loaded, described, drawn_anew, load_names
from lora_doctor.nn.copying import structural_copy, undisturbed
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.loading import Loading
from lora_doctor.static.folder.checkpoint_files import stored_shapes
from lora_doctor.static.model_files import gather_static

#: Parameters that a checkpoint has, compared as well: with others in them it was never loaded.
_COMPARED = 4


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A :class:`Loading` of a factory as JSON: what is other when it is called again.

    Args:
        source: :meth:`ModelSource.to_json` of a factory.
        recipe: :meth:`Recipe.to_json`, open keys filled.
        patches: ``{"name", "parameters"}`` of runtime patches, installed before loading.

    Raises:
        InputError: the factory cannot be called.
        EvidenceError: it loads no checkpoint whose names can be read.
    """
    install_patches(patches)
    plan = Recipe.from_json(recipe)
    model = Loader(source, plan).build()
    lacking = _lacking(model)
    result = _nothing_missing(model, lacking)
    if not lacking.names:
        return asdict(result)
    kept = _values(model, (*lacking.names, *lacking.stored[:_COMPARED]))
    again = call_factory(source["name"])[0]
    other = _others(kept, again)
    if any(name in other for name in lacking.stored):
        raise EvidenceError("the factory does not load the checkpoint that its config names")
    missing = {name: name in other for name in lacking.names}
    return asdict(_described(result, again, missing, plan))


def of_module(module: Any, recipe: Recipe) -> Loading:
    """What the checkpoint that a loaded module names lacks of its class. Whether the user's code
    got it from somewhere else is not known.

    Raises:
        EvidenceError: it names none whose names can be read.
    """
    with undisturbed():
        lacking = _lacking(module)
        missing = {name: name in lacking.drawn for name in lacking.names}
        result = _nothing_missing(module, lacking)
        if not any(missing.values()):
            return result
        return _described(result, structural_copy(module), missing, recipe)


def _described(result: Loading, model: Any, missing: Mapping[str, bool], recipe: Recipe) -> Loading:
    """With these weights named, and what of them the recipe's adapters leave unsaved. ``missing``:
    whether they are others after each loading; ``model`` is changed."""
    random = {name for name, drawn in missing.items() if drawn}
    if not random:
        return result
    found = described(Loaded(model, tuple(missing), ()), random)
    result = replace(result, missing=found)
    return with_adapters(result, model, recipe, RandomWeights(model, missing), loaded=False)


def _nothing_missing(model: Any, lacking: _Lacking) -> Loading:
    return Loading(model_class=type(model).__name__, tensors=lacking.tensors)


@dataclass
class _Lacking:
    """Parameters of a model that no checkpoint has, by their names in the model. ``drawn``: those
    that the class of the checkpoint draws. ``stored``: some that it has. ``tensors``: in all
    checkpoints."""

    names: list[str] = field(default_factory=list)
    drawn: set[str] = field(default_factory=set)
    stored: list[str] = field(default_factory=list)
    tensors: int = 0


def _lacking(model: Any) -> _Lacking:
    """What the checkpoints lack that the configs in the model name.

    Raises:
        EvidenceError: none is named whose names can be read.
    """
    if training_setup.is_adapted(model):
        raise EvidenceError("the model already has adapters, so its layers have other names")
    parts = dict(_loaded_parts(model))
    if not parts:
        raise EvidenceError("no checkpoint is named in the config of the model")
    found = _Lacking()
    if any(p.requires_grad for part in parts.values() for p in part.parameters()):
        # With all of a part frozen, what was left trainable beside it is another failure.
        found.names += _outside(model, parts)
        found.drawn |= set(found.names)
    for path, part in parts.items():
        shapes = stored_shapes(gather_static(_folder(part.config), source=_place(part.config)))
        loaded = load_names(type(part), part.config, shapes)
        prefix = f"{path}." if path else ""
        absent = set(loaded.missing)
        found.names += [f"{prefix}{name}" for name in loaded.missing]
        found.drawn |= {f"{prefix}{name}" for name in drawn_anew(loaded.model, loaded.missing)}
        found.stored += [
            f"{prefix}{name}"
            for name, value in loaded.model.named_parameters()
            if name not in absent and value.dim() > 1
        ]
        found.tensors += len(shapes)
    return found


def _loaded_parts(model: Any) -> Iterator[tuple[str, Any]]:
    """The outermost models of transformers in it that name a checkpoint which lies here."""
    from transformers import PreTrainedModel

    outer: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{other}.") or not other for other in outer):
            continue
        if isinstance(module, PreTrainedModel) and _place(module.config):
            outer.append(path)
            yield path, module


def _place(config: Any) -> str:
    return str(getattr(config, "_name_or_path", "") or "")


def _folder(config: Any) -> Path:
    """Where the files of the checkpoint lie that a config names.

    Raises:
        EvidenceError: they are not here.
    """
    place = _place(config)
    if "\0" not in place and (Path(place) / "config.json").is_file():
        return Path(place)
    from huggingface_hub import try_to_load_from_cache

    commit = getattr(config, "_commit_hash", None)
    try:
        cached = try_to_load_from_cache(place, "config.json", revision=commit)
    except Exception as error:
        raise EvidenceError(f"the checkpoint {place!r} is not here") from error
    if not isinstance(cached, str):
        raise EvidenceError(f"the checkpoint {place!r} is not here")
    return Path(cached).parent


def _outside(model: Any, parts: Mapping[str, Any]) -> list[str]:
    """Parameters of the model that stand beside what is loaded."""
    inside = tuple(f"{path}." if path else "" for path in parts)
    return [name for name, _ in model.named_parameters() if not name.startswith(inside)]


def _values(model: Any, names: Sequence[str]) -> dict[str, Any]:
    """Copies of these parameters, for as long as the model is not changed."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return {name: named[name].detach().clone() for name in names if name in named}


def _others(kept: Mapping[str, Any], again: Any) -> set[str]:
    """Which of them have other values in this model."""
    import torch

    named = dict(again.named_parameters(remove_duplicate=False))
    return {
        name
        for name, value in kept.items()
        if name in named and not torch.equal(value, named[name].detach())
    }
