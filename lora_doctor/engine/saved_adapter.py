"""A case with an adapter that is trained already: its config is the recipe, and is not edited."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.keys import OUTER_KEYS
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.finding import Finding
from lora_doctor.results.fix import Fix
from lora_doctor.static.adapter_files import (
    CONFIG,
    AdapterFiles,
    base_folder_of,
    is_adapter_folder,
    read_adapter,
)
from lora_doctor.static.model_source import ModelSource


def saved_adapter(
    model: Any, adapter: str | os.PathLike[str] | None
) -> tuple[Any, AdapterFiles | None]:
    """The model, and the saved adapter that is to be loaded onto it, if there is one. A MODEL that
    is an adapter folder stands for both.

    Raises:
        InputError: the adapter cannot be read, or the base model that it names is not here.
    """
    if adapter is not None:
        return model, read_adapter(Path(adapter).expanduser())
    if isinstance(model, (str, Path)):
        folder = Path(model).expanduser()
        if "\0" not in str(model) and is_adapter_folder(folder):
            base = base_folder_of(folder)
            return base, read_adapter(folder)
    return model, None


def onto_base(
    source: ModelSource, recipe: Recipe, adapter: AdapterFiles
) -> tuple[ModelSource, Recipe]:
    """The model as the adapter's class, where it has that, and the recipe that the adapter is.

    Raises:
        InputError: the model is one that no adapter is loaded onto here, or the recipe says
            something about the adapter too.
    """
    if source.kind in ("module", "script"):
        raise InputError(
            f"adapter: is loaded onto a hub id, a folder, arch:NAME or a factory, not {source}"
        )
    own = sorted(key for key in recipe.values if key not in OUTER_KEYS)
    if own:
        raise InputError(
            f"adapter: its config says what it is; leave out {', '.join(own)} (or check the "
            "recipe without the adapter)"
        )
    from lora_doctor.recipe.files.read_write import read_recipe

    config = read_recipe(adapter.folder / CONFIG)
    config = Recipe(
        {**config.values, **recipe.values},
        {**config.origins, **recipe.origins},
        config.complete,
        unknown=config.unknown,
    )
    onto = replace(
        source, preferred_class=adapter.base_class, adapter=str(adapter.folder.resolve())
    )
    return onto, config


def of_saved_adapter(finding: Finding) -> Finding:
    """The finding without edits of what the weights were trained by: those fixes are left as
    words."""
    return replace(finding, fixes=tuple(_in_words(fix) for fix in finding.fixes))


def of_trained_config(diagnosis: Diagnosis) -> Diagnosis:
    """The diagnosis of a recipe that is the config of a trained adapter, without edits of it."""
    found = tuple(of_saved_adapter(finding) for finding in diagnosis.findings)
    return replace(diagnosis, findings=found)


def _in_words(fix: Fix) -> Fix:
    if all(edit.key in OUTER_KEYS for edit in fix.edits):
        return fix
    return Fix(f"For an adapter that is trained anew: {fix.title}", "manual")
