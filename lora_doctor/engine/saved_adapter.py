"""A case with an adapter that is trained already: its config is the recipe, and is not edited."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.keys import INFERENCE_MODE, OUTER_KEYS
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.finding import Finding
from lora_doctor.results.fix import Fix
from lora_doctor.static.adapter_files import (
    CONFIG,
    AdapterFiles,
    adapter_of,
    is_adapter_folder,
    read_adapter,
)
from lora_doctor.static.hub.hub_files import ADAPTER, AdapterInstead
from lora_doctor.static.model_source import ModelSource, is_hub_id, parse_model
from lora_doctor.static.named_file import named_folder
from lora_doctor.static.piece import shown


@dataclass(frozen=True)
class Finder:
    """Finds saved adapters, in folders and on the hub, and the base models that they name.

    ``seconds``: for all requests to the hub about one repository. ``progress``: is told what is
    fetched. ``trust_remote_code``: what was asked for MODEL.
    """

    seconds: float
    progress: Callable[[str], None]
    trust_remote_code: bool = False

    def find(
        self, model: Any, adapter: str | os.PathLike[str] | None
    ) -> tuple[Any, AdapterFiles | None]:
        """The model, and the saved adapter that is to be loaded onto it, if there is one. A MODEL
        that is an adapter folder stands for both.

        Raises:
            InputError: the adapter cannot be read, or the base model that it names is not here.
        """
        if adapter is not None:
            return model, self._named(adapter)
        if isinstance(model, (str, Path)):
            folder = Path(model).expanduser()
            if "\0" not in str(model) and is_adapter_folder(folder):
                found = read_adapter(folder)
                return _base_folder(found) or self._base_on_hub(found), found
        return model, None

    def beside(
        self, source: ModelSource, name: str, folders: tuple[Path, ...]
    ) -> tuple[ModelSource, AdapterFiles]:
        """The source with the adapter that a set-up names: a folder, as from here or from one of
        these folders, or a hub id. A source that is an adapter itself becomes its base model.

        Raises:
            InputError: the adapter cannot be read, or its base model is not here.
        """
        adapter = self._named(_here(name, folders))
        own = Path(source.name).expanduser()
        if source.kind == "folder" and is_adapter_folder(own):
            of_base = _base_folder(read_adapter(own)) or self._base_on_hub(read_adapter(own))
            base = parse_model(of_base, trust_remote_code=source.trust_remote_code)
            source = replace(base, script=source.script)
        return source, adapter

    def fetched(self, source: ModelSource) -> tuple[ModelSource, AdapterFiles | None]:
        """The source of a hub id with its small files. Where the id is that of an adapter: of its
        base model, and the adapter.

        Raises:
            InputError: the hub has no such model, does not answer, or does not say which base.
        """
        try:
            return self._with_files(source), None
        except AdapterInstead:
            adapter = self._on_hub(source.name, source.revision)
        try:
            return self._with_files(self._base_on_hub(adapter)), adapter
        except AdapterInstead as error:
            raise InputError(f"base model of {adapter.place}: {error}") from None

    def _named(self, given: str | os.PathLike[str]) -> AdapterFiles:
        """The adapter of a path, of ``ORG/NAME`` or of ``ORG/NAME@REVISION``."""
        name, _, revision = str(given).partition("@")
        local = not isinstance(given, str) or given.startswith((".", "/", "~"))
        try:
            path = Path(given).expanduser()
            if local or "/" not in name or not is_hub_id(name) or path.exists():
                return read_adapter(path)
        except (OSError, RuntimeError) as error:  # too long, or below the home of nobody
            raise InputError(f"adapter {shown(str(given))}: {_why(error)}") from None
        try:
            return self._on_hub(name, revision or None)
        except InputError as error:
            raise InputError(f"adapter {str(given)!r}: no such folder, and {error}") from None

    def _on_hub(self, name: str, revision: str | None) -> AdapterFiles:
        from lora_doctor.static.hub.hub import fetch_small_files

        self.progress(f"fetching the config and the header of {name}")
        return adapter_of(
            fetch_small_files(name, revision=revision, time_limit=self.seconds, contents=ADAPTER)
        )

    def _with_files(self, source: ModelSource) -> ModelSource:
        from lora_doctor.static.hub.hub import fetch_small_files

        self.progress(f"fetching the small files of {source.name}")
        return source.fetched(
            fetch_small_files(source.name, revision=source.revision, time_limit=self.seconds)
        )

    def _base_on_hub(self, adapter: AdapterFiles) -> ModelSource:
        """The hub id of the base model that the config names. Its code is not run: nobody has said
        that it may."""
        name, revision = adapter.base_model, adapter.config.get("revision")
        if not is_hub_id(name):
            where = "hub id" if adapter.snapshot else "folder here and no hub id"
            named = f"names {shown(name)}, which is no {where}" if name else "names no base model"
            raise InputError(
                f"MODEL {adapter.place}: holds an adapter whose config {named}; give the base "
                "model as MODEL, and this one with --adapter"
            )
        if self.trust_remote_code:
            raise InputError(
                f"MODEL {adapter.place}: is an adapter, and --trust-remote-code would run code of "
                f"{name}, which its config names; give {name} as MODEL, and this one with --adapter"
            )
        return ModelSource("hub", name, revision if isinstance(revision, str) else None)


def _here(name: str, folders: tuple[Path, ...]) -> str:
    """The path as it is found from here, or from the first of these folders that has it."""
    found = named_folder(name, (Path(), *folders))
    return name if found is None else str(found.resolve())


def _why(error: Exception) -> str:
    return error.strerror or "cannot be read" if isinstance(error, OSError) else str(error)


def _base_folder(adapter: AdapterFiles) -> Path | None:
    """The folder that the config of an adapter here names as its base model, if it is one."""
    name = adapter.base_model
    return named_folder(name, (Path(),)) if name else None


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
    onto = replace(
        source, preferred_class=adapter.base_class, adapter=str(adapter.folder.resolve())
    )
    return onto, _trained_recipe(recipe, adapter)


def _trained_recipe(recipe: Recipe, adapter: AdapterFiles) -> Recipe:
    """What the adapter was trained by, with what the recipe says of loading and training."""
    from lora_doctor.recipe.files.read_write import read_recipe

    config = read_recipe(adapter.folder / CONFIG)
    # Every saved adapter says it; loading it to be trained (`is_trainable`) undoes it.
    loaded = {key: value for key, value in config.values.items() if key != INFERENCE_MODE}
    outer = {key: value for key, value in recipe.values.items() if key in OUTER_KEYS}
    of_unknown = {key: place for key, place in config.places.items() if key in config.unknown}
    return replace(
        recipe,
        values={**loaded, **outer},
        origins={**config.origins, **{key: recipe.origins[key] for key in outer}},
        complete=config.complete,
        unknown=config.unknown,
        places={**{key: recipe.places[key] for key in outer if key in recipe.places},
                **of_unknown},
    )  # fmt: skip


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
