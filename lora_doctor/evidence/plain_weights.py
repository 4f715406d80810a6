"""The tiny model with weights in floating point, loaded with the ``quantization_config`` of its
checkpoint: what happens where the config says quantized and the weights are not.

Runs in a forked child; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.evidence import stored_quantization, tiny
from lora_doctor.evidence.reload import saved
from lora_doctor.model import checkpoint_quantization, training_setup
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.loading import Loader
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.plain_weights import PlainWeights
from lora_doctor.sandbox.memory import is_out_of_memory

_DTYPE = "float32"
_NAMED = 8


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    made: str | None = None,
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A :class:`PlainWeights` as JSON.

    Args:
        source, recipe, patches: as every task has them.
        made: a file in which another task may have left the tiny model.

    Raises:
        EvidenceError: no tiny model can be made, or such a quantization does not run here, so that
            a failure would say nothing.
    """
    install_patches(patches)
    plan = Recipe.from_json(recipe)
    loader = Loader(source, plan)
    values = checkpoint_quantization.stored(loader.config)
    if values is None:
        raise EvidenceError("the checkpoint is not quantized")
    shrunk = tiny.make(loader, made)
    if shrunk.batch is None:
        raise EvidenceError("no batch that the tiny model takes was found")
    as_it_should_be = stored_quantization.quantized_as(
        values, copy.deepcopy(shrunk.model), plan, _DTYPE, "cpu"
    )
    error = _raised_in_forward(as_it_should_be, shrunk.batch)
    if error is not None:
        raise EvidenceError(f"weights quantized like this do not run here: {error}")
    return asdict(_loaded(shrunk, values, plan))


def _loaded(shrunk: Any, values: Mapping[str, Any], recipe: Recipe) -> PlainWeights:
    """What transformers makes of a folder whose config says quantized and whose weights are not."""
    found = PlainWeights(str(values.get("quant_method") or "unnamed"))
    options = training_setup.loading_options(recipe, _DTYPE)
    with saved(shrunk.model) as folder:
        _write_quantization(Path(folder) / "config.json", values)
        try:
            model, loaded = type(shrunk.model).from_pretrained(
                folder, device_map={"": "cpu"}, output_loading_info=True, **options
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return replace(found, error=library_error(error), raised_in="from_pretrained")
    raised = _raised_in_forward(model, shrunk.batch)
    missing = tuple(sorted(loaded["missing_keys"])[:_NAMED])
    return replace(found, error=raised, raised_in="forward" if raised else "", missing=missing)


def _write_quantization(path: Path, values: Mapping[str, Any]) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = dict(values)
    path.write_text(json.dumps(config), encoding="utf-8")


def _raised_in_forward(model: Any, batch: Any) -> Any:
    """What one forward pass raises, as an ``ErrorReport``; ``None`` where it goes through."""
    try:
        model(**copy.deepcopy(batch.inputs))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return library_error(error)
    return None
