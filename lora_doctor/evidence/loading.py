"""What loading makes of the names in a checkpoint: the class at full size on the meta device.

Runs in a child process that has torch, transformers and peft imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lora_doctor.contract.random_weights import RandomWeights
from lora_doctor.errors import EvidenceError
from lora_doctor.model import training_setup
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.loading import Loader
from lora_doctor.model.random_weights import Shapes, describe_missing, load_names, missing_in
from lora_doctor.model.saved_class import shapes_by_class
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.loading import Loading
from lora_doctor.sandbox.memory import is_out_of_memory

_EXAMPLES = 5


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    shapes: Shapes | None,
    patches: Sequence[Mapping[str, Any]] = (),
    saved_class: str = "",
) -> dict[str, Any]:
    """A :class:`Loading` as JSON.

    Args:
        source: :meth:`ModelSource.to_json` of a folder or a hub id.
        recipe: :meth:`Recipe.to_json`, open keys filled.
        shapes: of each tensor in the checkpoint, in elements; ``None`` where it is not known.
            ``None`` where the names are not known either.
        patches: ``{"name", "parameters"}`` of runtime patches, installed before loading.
        saved_class: the class that its config names, which then says what the checkpoint can have.

    Raises:
        InputError: what the user named does not exist.
        EvidenceError: this environment cannot load the class from names.
    """
    install_patches(patches)
    plan = Recipe.from_json(recipe)
    loader = Loader(source, plan)
    cls: Any = loader.model_class
    if not hasattr(cls, "from_pretrained"):
        raise EvidenceError(f"{cls.__name__} has no from_pretrained")
    if shapes is None:
        if cls.__name__ == saved_class:
            raise EvidenceError("the names of the tensors in the checkpoint are not known")
        shapes = shapes_by_class(cls, saved_class, loader.config)
    else:
        saved_class = ""
    loaded = load_names(cls, loader.config, shapes)
    missing = describe_missing(loaded)
    result = Loading(
        model_class=cls.__name__,
        tensors=len(shapes),
        saved_class=saved_class,
        missing=missing,
        unplaced=len(loaded.unplaced),
        unplaced_examples=loaded.unplaced[:_EXAMPLES],
        other_sizes=() if saved_class else loaded.other_sizes,
    )
    if any(item.drawn for item in missing):
        followed = RandomWeights(loaded.model, missing_in(loaded.model, missing))
        result = with_adapters(result, loaded.model, plan, followed)
    return asdict(result)


def with_adapters(
    result: Loading, model: Any, recipe: Recipe, followed: RandomWeights, *, loaded: bool = True
) -> Loading:
    """With what of the missing weights is not saved once the model, which is changed, has its
    adapters. ``loaded``: it comes out of loading; else the user hands it over as it is."""
    wrap = training_setup.wrapper(model, recipe, loaded=loaded)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = wrap(model) if wrap is not None else model
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return replace(result, error=library_error(error))
    return replace(result, unsaved=followed.unsaved(wrapped))
