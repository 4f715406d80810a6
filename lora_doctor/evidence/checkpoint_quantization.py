"""Evidence about a checkpoint that comes quantized: what the installed libraries make of it.

Runs in a forked child; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.model import checkpoint_quantization
from lora_doctor.model.loading import Loader
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.recipe import Recipe


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    asked: Mapping[str, Any],
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """:meth:`CheckpointQuantization.to_json` of the checkpoint of this source.

    Args:
        source: :meth:`ModelSource.to_json`.
        recipe: :meth:`Recipe.to_json`, open keys filled.
        asked: the same as the user gave it.
        patches: runtime patches, installed before loading.

    Raises:
        InputError: the source does not exist or is not what it should be.
        EvidenceError: the checkpoint is not quantized.
    """
    install_patches(patches)
    plan = Recipe.from_json(recipe)
    loader = Loader(source, plan)
    if checkpoint_quantization.stored(loader.config) is None:
        raise EvidenceError("the checkpoint is not quantized")
    model = loader.build("meta")
    found = checkpoint_quantization.describe(model, loader.config, plan, Recipe.from_json(asked))
    return found.to_json()
