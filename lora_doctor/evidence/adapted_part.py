"""A part of the model, handed to ``get_peft_model`` as a program does it: on the meta device.

Runs in a forked child; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.loading import Loader, wrap
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.adapted_part import AdaptedPart
from lora_doctor.sandbox.memory import is_out_of_memory


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    path: str,
    call: Mapping[str, Any],
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """An :class:`AdaptedPart` as JSON.

    Args:
        source, recipe, patches: as every task has them.
        path: attributes from the model to the part, joined by dots.
        call: ``code``, ``file`` and ``line`` of the program's own call.

    Raises:
        EvidenceError: the class that would be loaded has no such part.
    """
    import torch

    install_patches(patches)
    plan = Recipe.from_json(recipe)
    part: Any = Loader(source, plan).build("meta")
    for name in path.split("."):
        part = getattr(part, name, None)
    if not isinstance(part, torch.nn.Module):
        raise EvidenceError(f"the class that is loaded has no module {path}")
    found = AdaptedPart(path, type(part).__name__, **call)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrap(part, plan)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return {**asdict(found), "error": asdict(library_error(error))}
    return asdict(found)
