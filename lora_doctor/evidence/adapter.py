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
from lora_doctor.evidence.full import allowed_downloads
from lora_doctor.model.adapter_loading import load
from lora_doctor.model.adapter_renaming import find_renaming, sequence_of_targets
from lora_doctor.model.loading import Loader, resized, unknown_entry
from lora_doctor.model.peft_models import peft_models
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.adapter_loading import AdapterLoading, Landing, Renaming
from lora_doctor.results.from_json import from_json
from lora_doctor.static.adapter_files import CONFIG, WEIGHTS
from lora_doctor.static.hub.hub_library import guard_downloads
from lora_doctor.static.weights import Tensor
from lora_doctor.text import one_line


def gather(
    source: dict[str, Any],
    recipe: dict[str, Any],
    config: dict[str, Any],
    tensors: Mapping[str, Mapping[str, Any]],
    folder: str | None = None,
    patches: Sequence[Mapping[str, Any]] = (),
    sparing: bool = False,
) -> dict[str, Any]:
    """An :class:`AdapterLoading` as JSON.

    Args:
        source: :meth:`ModelSource.to_json` of the base model.
        recipe: :meth:`Recipe.to_json`, by which it is loaded.
        config: the adapter's.
        tensors: of the adapter's file, by name: each a :class:`Tensor` as JSON.
        folder: that it lies in; ``None`` where there are only these: on the hub, of a pickle.
        patches: ``{"name", "parameters"}`` of runtime patches, installed before loading.
        sparing: with ``low_cpu_mem_usage``, onto a model in the dtype that it is loaded in.

    Raises:
        InputError: the model that the user named cannot be read.
        EvidenceError: the model has adapters already.
    """
    install_patches(patches)
    base = Base(source, Recipe.from_json(recipe))
    unknown = unknown_entry(base.config(), source)
    if unknown:
        raise EvidenceError(
            f"the script loads the model with a {unknown} that it does not spell out"
        )
    adapter = Saved(config, {name: from_json(Tensor, item) for name, item in tensors.items()})
    model = base.build()
    if peft_models(model):
        raise EvidenceError("the model already has adapters; give the base model")
    name = type(model).__name__
    dtype = base.dtype() if sparing else None
    if dtype is not None:
        model = model.to(dtype)
    if folder:
        landing = load(model, Path(folder), adapter.tensors, sparing=dtype is not None)
    else:
        landing = _load(model, adapter)
    if landing.complete or landing.other_shapes:
        return asdict(AdapterLoading(name, landing))
    renaming = find_renaming(base.build(), adapter.tensors, adapter.config)
    if renaming is not None:
        renaming = _proven(base, adapter, renaming)
    return asdict(AdapterLoading(name, landing, renaming))


def download(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    model_id: str,
    commit: str,
    listed: int | None,
    patches: Sequence[Mapping[str, Any]] = (),
) -> bool:
    """The weights of an adapter on the hub, into the hub's cache: ``listed`` bytes, where the hub
    said how many.

    Raises:
        EvidenceError: they cannot be had.
    """
    from huggingface_hub import hf_hub_download

    guard_downloads(allowed_downloads(model_id, listed))
    try:
        hf_hub_download(model_id, WEIGHTS, revision=commit)
    except Exception as error:
        kind = "" if isinstance(error, EvidenceError) else f"{type(error).__name__}: "
        raise EvidenceError(
            f"the weights of {model_id} cannot be obtained: {kind}{one_line(error, 200)}",
            remedy="hub",
        ) from error
    return True


#: transformers that loads weights in the dtype of the config where none is asked for.
_AUTO_BY_DEFAULT = 5


@dataclass(frozen=True)
class Saved:
    """A saved adapter: its config, and its tensors by name, without their numbers."""

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Base:
    """The base model, anew for each attempt: PEFT changes it."""

    source: dict[str, Any]
    recipe: Recipe

    def config(self) -> Any:
        """The config by which it is built."""
        return Loader(self.source, self.recipe).config

    def dtype(self) -> Any:
        """The dtype that its weights are loaded in; ``None`` where that is not known."""
        import torch
        import transformers

        wanted = self.recipe.get("dtype")
        if wanted is None and int(transformers.__version__.partition(".")[0]) < _AUTO_BY_DEFAULT:
            return torch.float32
        if wanted in (None, "auto"):
            wanted = Loader(self.source, self.recipe).native_dtype
        return getattr(torch, str(wanted), None)

    def build(self) -> Any:
        """An ``nn.Module`` on the meta device, a factory's own too."""
        return resized(Loader(self.source, self.recipe).build("meta").to("meta"), self.source)


def _proven(base: Base, adapter: Saved, renaming: Renaming) -> Renaming:
    """The renaming with what PEFT makes of it; where the short names of target modules mean other
    layers, with full paths."""
    tried = replace(renaming, landing=_load_renamed(base, adapter, renaming))
    if tried.proven:
        return tried
    paths = {"target_modules": list(sequence_of_targets(renaming, adapter.config))}
    by_path = replace(renaming, config={**renaming.config, **paths})
    by_path = replace(by_path, landing=_load_renamed(base, adapter, by_path))
    return by_path if by_path.proven else tried


def _load_renamed(base: Base, adapter: Saved, renaming: Renaming) -> Landing:
    tensors = {renaming.names[name]: item for name, item in adapter.tensors.items()}
    return _load(base.build(), Saved({**adapter.config, **renaming.config}, tensors))


def _load(model: Any, adapter: Saved) -> Landing:
    """What PEFT makes of a folder with this config."""
    with tempfile.TemporaryDirectory(prefix="lora-doctor-") as name:
        folder = Path(name)
        (folder / CONFIG).write_text(json.dumps(adapter.config), encoding="utf-8")
        (folder / WEIGHTS).touch()  # PEFT asks whether it is there; `load` stands for its content
        return load(model, folder, adapter.tensors)
