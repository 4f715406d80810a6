"""A saved adapter on the real class: loaded by the installed PEFT, without weights.

Runs in a child process that has torch, transformers and peft imported.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.model.adapter_loading import load
from lora_doctor.model.adapter_renaming import find_renaming, sequence_of_targets
from lora_doctor.model.loading import Loader
from lora_doctor.model.peft_models import peft_models
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.adapter_loading import AdapterLoading, Landing, Renaming
from lora_doctor.static.adapter_files import CONFIG, WEIGHTS, AdapterFiles, read_adapter


def gather(
    source: dict[str, Any],
    recipe: dict[str, Any],
    folder: str,
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """An :class:`AdapterLoading` as JSON.

    Raises:
        InputError: the model or the adapter that the user named cannot be read.
        EvidenceError: the model has adapters already.
    """
    install_patches(patches)
    base = Base(source, Recipe.from_json(recipe))
    adapter = read_adapter(Path(folder))
    tensors = adapter.weights.tensors
    model = base.build()
    if peft_models(model):
        raise EvidenceError("the model has adapters already; give the base model")
    name = type(model).__name__
    landing = load(model, adapter.folder, tensors)
    if landing.complete or landing.other_shapes:
        return asdict(AdapterLoading(name, landing))
    renaming = find_renaming(base.build(), tensors, adapter.config)
    if renaming is not None:
        renaming = _proven(base, adapter, renaming)
    return asdict(AdapterLoading(name, landing, renaming))


@dataclass(frozen=True)
class Base:
    """The base model, anew for each attempt: PEFT changes it."""

    source: dict[str, Any]
    recipe: Recipe

    def build(self) -> Any:
        """An ``nn.Module`` on the meta device, a factory's own too."""
        return Loader(self.source, self.recipe).build("meta").to("meta")


def _proven(base: Base, adapter: AdapterFiles, renaming: Renaming) -> Renaming:
    """The renaming with what PEFT makes of it; where the short names of target modules mean other
    layers, with full paths."""
    tried = replace(renaming, landing=_load_renamed(base, adapter, renaming))
    if tried.proven:
        return tried
    paths = {"target_modules": list(sequence_of_targets(renaming, adapter.config))}
    by_path = replace(renaming, config={**renaming.config, **paths})
    by_path = replace(by_path, landing=_load_renamed(base, adapter, by_path))
    return by_path if by_path.proven else tried


def _load_renamed(base: Base, adapter: AdapterFiles, renaming: Renaming) -> Landing:
    tensors = {renaming.names[name]: item for name, item in adapter.weights.tensors.items()}
    with tempfile.TemporaryDirectory(prefix="lora-doctor-") as name:
        folder = Path(name)
        config = {**adapter.config, **renaming.config}
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        (folder / WEIGHTS).touch()  # PEFT asks whether it is there; `load` stands for its content
        return load(base.build(), folder, tensors)
