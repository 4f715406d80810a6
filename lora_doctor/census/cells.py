"""The cells of a row, but for the recipe's own: a tiny model, tried in several ways.

Runs in a forked child; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.evidence import fewer_layers, tiny
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.verification import Verification
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.sandbox.worker import report_progress
from lora_doctor.text import single_line

STEPS = 1
STEPS_AS_CHECK = 3


def gather(
    source: Mapping[str, Any],
    ways: Mapping[str, Mapping[str, Any]],
    own: Mapping[str, Any],
    keep: str | None = None,
    made: str | None = None,
) -> dict[str, dict[str, str]]:
    """Try each way on one tiny model: ``{"status": "yes", "no" or "unknown", "reason": ...}``.

    Args:
        source: :meth:`ModelSource.to_json`.
        ways: name of the cell to the recipe (:meth:`Recipe.to_json`) that it is about; all for the
            same class.
        own: the row's recipe, which the ways are variants of.
        keep: a folder for the tiny model (`save_pretrained`), its batch (`batch.safetensors`, and
            `batch.json` for what is no tensor) and `recipe.json`, the row's recipe with the layer
            numbers of the tiny model, so that others can try the same.
        made: a file in which another task has left the tiny model.

    Raises:
        EvidenceError: no tiny model can be made.
    """
    from lora_doctor.model.loading import Loader

    recipes = {name: Recipe.from_json(data) for name, data in ways.items()}
    loader = Loader(source, next(iter(recipes.values())))
    shrunk = tiny.make(loader, made)
    if keep is not None:
        fitted = fewer_layers.fitted(Recipe.from_json(own), shrunk.model, loader).recipe
        save(shrunk, fitted, Path(keep))
    found = {}
    for name, recipe in recipes.items():
        report_progress(f"trying {name}")
        try:
            result = _try(shrunk, loader, recipe, STEPS)
            if [check.name for check in result.failed_checks] == ["adapters-move"]:
                # Deep in a vision tower the first step can be smaller than float32 tells apart
                result = _try(shrunk, loader, recipe, STEPS_AS_CHECK)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            found[name] = {
                "status": "no",
                "reason": f"{type(error).__name__}: {single_line(str(error), 240)}",
            }
            continue
        found[name] = cell(result)
    return found


def _try(shrunk: Any, loader: Any, recipe: Recipe, steps: int) -> Verification:
    model, batch = copy.deepcopy(shrunk.model), copy.deepcopy(shrunk.batch)
    run = tiny.TinyRun(model, batch, loader, recipe, steps, "cpu", thorough=False)
    return tiny.verify(run)


def cell(result: Verification) -> dict[str, str]:
    """What a verification says in one cell."""
    unproven = [note for note in result.notes if note.is_unproven]
    if result.outcome == "undetermined" and result.obstacle != "not-proven":
        return {"status": "unknown", "reason": result.reason}
    if result.outcome == "failed":
        return {"status": "no", "reason": why(result)}
    if unproven:
        # The columns about half precision are about this machine: what raises here does not train
        # here. Whatever else kept us from trying says nothing.
        first = unproven[0]
        if first.kind == "does-not-run":
            return {"status": "no", "reason": first.reason}
        return {"status": "unknown", "reason": first.text}
    return {"status": "yes", "reason": ""}


def why(result: Verification) -> str:
    """The first failed check in one sentence, with the exception where there was one."""
    first = result.failed_checks[0]
    if result.failure is not None and result.failure.check == first.name:
        return f"{first.name}: {result.failure.type}: {single_line(result.failure.message, 240)}"
    detail = f" ({single_line(first.detail, 200)})" if first.detail else ""
    return f"{first.name}: {first.value}{detail}"


def save(shrunk: Any, recipe: Recipe, folder: Path) -> None:
    """The tiny model, its batch and a recipe as files.

    Raises:
        EvidenceError: it has no batch.
    """
    import torch
    from safetensors.torch import save_file

    if shrunk.batch is None:
        raise EvidenceError("there is no batch to keep")
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(shrunk.model).save_pretrained(folder, safe_serialization=True)
    tensors = {k: v for k, v in shrunk.batch.inputs.items() if isinstance(v, torch.Tensor)}
    others = {k: v for k, v in shrunk.batch.inputs.items() if k not in tensors}
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    save_file(contiguous, str(folder / "batch.safetensors"))
    (folder / "batch.json").write_text(json.dumps(others), encoding="utf-8")
    values = {key: value for key, value in recipe.values.items() if value is not None}
    (folder / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
