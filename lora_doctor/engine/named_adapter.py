"""A saved adapter that the set-up names itself: checked as one that the user gives beside MODEL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_doctor.engine.program import only_read
from lora_doctor.engine.saved_adapter import Finder, onto_base
from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.recipe.keys import OUTER_KEYS
from lora_doctor.recipe.program.loading_entries import loading_entries
from lora_doctor.recipe.program.read_setup import setup_of
from lora_doctor.recipe.program.resized import resized_before_adapter
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.static.adapter_files import AdapterFiles
from lora_doctor.static.model_source import ModelSource
from lora_doctor.static.named_file import named_folder
from lora_doctor.static.piece import read_json_object

Found = tuple[ModelSource, Recipe, AdapterFiles | None]


def with_named_adapter(source: ModelSource, recipe: Recipe, finder: Finder) -> Found:
    """The model with the saved adapter that a script, or the file of a framework, loads onto it;
    any other source as it is. A script whose adapter cannot be read is read itself."""
    if source.script:
        return _of_script(source, recipe, finder)
    if recipe.set_up is not None and source.kind in ("hub", "folder"):
        return _of_framework(source, recipe, finder)
    return source, recipe, None


def _of_script(source: ModelSource, recipe: Recipe, finder: Finder) -> Found:
    setup = setup_of(recipe)
    named = setup.saved_adapter if setup is not None else None
    if setup is None or named is None:
        return source, recipe, None
    resized = resized_before_adapter(setup)
    try:
        source, adapter = finder.beside(source, named.name, (Path(source.script).parent,))
        if resized is not None and resized.rows is None and not _without_rows(source, adapter):
            why = f"{resized.place}: gives the model other embeddings than the checkpoint has"
            why = f"{why}; give both: MODEL --adapter {named.name}"
            return *only_read(source, recipe, why), None
        known, unknown = loading_entries(setup)
        rows = (resized.rows or 0) if resized is not None else 0
        source = replace(source, rows=rows, entries=known, unknown_entries=unknown)
        return *onto_base(source, recipe, adapter), adapter
    except InputError as error:
        return *only_read(source, recipe, f"{named.place}: {error}"), None


def _without_rows(source: ModelSource, adapter: AdapterFiles) -> bool:
    """Whether nothing of the adapter is as long as the vocabulary, so that it fits embeddings of
    any length."""
    if source.kind != "folder" or adapter.header is None:
        return False
    try:
        config = read_json_object(Path(source.name).expanduser() / "config.json")
    except EvidenceError:  # which is told where the config is needed
        return False
    parts = (config, config.get("text_config"))
    sizes = [part.get("vocab_size") for part in parts if isinstance(part, dict)]
    rows = max((one for one in sizes if isinstance(one, int)), default=0)
    longest = max(
        (size for one in adapter.header.tensors.values() for size in one.shape), default=0
    )
    return longest < rows and not adapter.config.get("trainable_token_indices")


def _of_framework(source: ModelSource, recipe: Recipe, finder: Finder) -> Found:
    """Where the training runs somewhere else its adapter is not here: then the rest is checked."""
    from lora_doctor.recipe.files.format import framework_named

    assert recipe.set_up is not None
    named = framework_named(recipe.set_up.format).saved_adapter(recipe.set_up.entries)
    folders = tuple(Path(one).parent for one in recipe.set_up.files[:1])
    if named is None or named_folder(named, (Path(), *folders)) is None:
        return source, recipe, None
    try:
        source, adapter = finder.beside(source, named, folders)
    except InputError:
        return source, recipe, None
    return *onto_base(source, _without_new_adapter(recipe), adapter), adapter


def _without_new_adapter(recipe: Recipe) -> Recipe:
    """The recipe without what it says of a new adapter, which the framework does not read beside a
    saved one."""
    outer = {key: value for key, value in recipe.values.items() if key in OUTER_KEYS}
    return replace(recipe, values=outer, origins={key: recipe.origins[key] for key in outer})


def only_uses(source: ModelSource, recipe: Recipe) -> bool:
    """Whether the set-up merges or uses the saved adapter that it names, and trains nothing."""
    if source.script:
        setup = setup_of(recipe)
        named = setup.saved_adapter if setup is not None else None
        return named is not None and not named.trained
    if recipe.set_up is None:
        return False
    from lora_doctor.recipe.files.format import framework_named

    return framework_named(recipe.set_up.format).only_uses(recipe.set_up.entries)
