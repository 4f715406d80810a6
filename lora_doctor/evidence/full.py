"""Evidence at depth ``full``: the training contract on the real weights and the real device.

Runs in a child process; torch, transformers and PEFT are imported inside functions. Only
safetensors are loaded: pickled weights are programs.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_doctor.contract.contract import LEARNING_RATE, Contract
from lora_doctor.contract.precision import Precision
from lora_doctor.contract.subject import Subject
from lora_doctor.errors import EvidenceError
from lora_doctor.evidence import kbit_preparation
from lora_doctor.evidence.reload import does_not_load
from lora_doctor.evidence.sent_batch import as_sent
from lora_doctor.limits import DOWNLOAD_TIMES, LISTING_BYTES
from lora_doctor.model import checkpoint_quantization, contract_batches, training_setup
from lora_doctor.model.random_weights import loaded_again, missing_in
from lora_doctor.nn import dtypes
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.depth import STEPS
from lora_doctor.results.from_json import from_json
from lora_doctor.results.loading import MissingWeight
from lora_doctor.results.note import Note
from lora_doctor.results.verification import Verification
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.sandbox.worker import report_progress
from lora_doctor.static.hub.hub_library import Downloads, guard_downloads
from lora_doctor.text import one_line, size_in_words

_FILES = ("*.safetensors", "*.json", "*.model", "*.txt")


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    steps: int = STEPS,
    device: str = "auto",
    patches: Sequence[Mapping[str, Any]] = (),
    listed_bytes: int | None = None,
    missing: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Run the training contract on the real weights: :meth:`Verification.to_json`.

    Args:
        source: :meth:`ModelSource.to_json` of a folder, a hub id or a factory.
        recipe: :meth:`Recipe.to_json`, open keys filled; dtype, quantization and
            ``attn_implementation`` go to ``from_pretrained``.
        steps: rounds of optimizer steps, one step per batch.
        device: ``auto`` (CUDA, then MPS, then CPU), or a torch device.
        patches: ``{"name", "parameters"}`` of runtime patches, installed before loading.
        listed_bytes: of all files of a hub id, as the hub lists them; ``None`` where it did not.
        missing: each a :class:`MissingWeight` as JSON: what the checkpoint lacks.

    Raises:
        InputError: the source does not exist or is not what it should be.
    """
    from lora_doctor.model.loading import Loader

    installed = install_patches(patches)
    plan = Recipe.from_json(recipe)
    device = choose_device(device)
    try:
        report_progress("finding the model's class")
        if source["kind"] == "hub":
            guard_downloads(allowed_downloads(source["name"], listed_bytes))
        found = tuple(from_json(MissingWeight, item) for item in missing)
        result = _verify(Loader(source, plan), plan, steps, device, found)
    except EvidenceError as error:
        result = Verification.undetermined(str(error), depth="full", device=device)
    return {**result.to_json(), "patches": installed}


def choose_device(device: str) -> str:
    """The device that ``auto`` means here.

    Raises:
        EvidenceError: the device that was asked for is not there.
    """
    import torch

    cuda = torch.cuda.is_available()
    mps = hasattr(torch.backends, "mps") and torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    if (device.startswith("cuda") and not cuda) or (device == "mps" and not mps):
        raise EvidenceError(f"--device {device}: this torch sees no such device; use cpu")
    return device


def _verify(
    loader: Any, recipe: Recipe, steps: int, device: str, missing: Sequence[MissingWeight]
) -> Verification:
    notes: list[Note] = []
    report_progress("loading the weights", device=device)
    try:
        model = _load(loader, recipe, device)
    except EvidenceError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return does_not_load(error, "full", device)
    dtype = dtypes.dtype_of(model)
    report_progress("making batches", dtype=dtype)
    try:
        batches = contract_batches.make_batches(model, loader.factory_batches, None, notes)
    except contract_batches.NoBatch as error:
        unclear = Verification.undetermined(
            str(error), depth="full", device=device, obstacle="batch", base_error=error.raised
        )
        del model
        return _judged(unclear, loader, recipe, device)
    precision = Precision.of(recipe, dtype, device)
    batches = [
        contract_batches.cast(batch.to(device), dtype)
        if loader.factory_batches
        else as_sent(model, batch.to(device), dtype, precision, notes)
        for batch in batches
    ]
    subject = _subject(model, batches, loader, recipe, missing, notes)
    report_progress(f"running the training contract on {device}")
    contract = Contract(subject, recipe, steps=steps, depth="full", device=device, dtype=dtype)
    result = contract.run()
    del model, subject, contract
    return _judged(result, loader, recipe, device)


def _subject(
    model: Any,
    batches: list[Any],
    loader: Any,
    recipe: Recipe,
    missing: Sequence[MissingWeight],
    notes: list[Note],
) -> Subject:
    """What the training contract is run on: the model as loaded, and how adapters are put on."""
    lacking = missing_in(model, missing)
    adapter = loader.source.get("adapter")
    return Subject(
        base=model,
        batches=batches,
        wrap=training_setup.going_on_from(adapter)
        if adapter
        else training_setup.wrapper(model, recipe, loaded=loader.source["kind"] != "factory"),
        continued=bool(adapter),
        fresh=loaded_again(
            training_setup.fresh_base(model, shared=not training_setup.rewrites_weights(recipe)),
            [*filter(lacking.get, lacking)],
        ),
        missing_weights=lacking,
        set_up=lambda wrapped: training_setup.set_up(wrapped, recipe),
        learning_rate=LEARNING_RATE,
        copyable=training_setup.is_copyable(model),
        user_weights=True,
        user_inputs=bool(loader.factory_batches),
        missing=contract_batches.missing_inputs(model, batches),
        model_class=type(model).__name__,
        steps=notes,
    )


def _judged(result: Verification, loader: Any, recipe: Recipe, device: str) -> Verification:
    """:func:`kbit_preparation.judged`, for a quantized model that does not run once prepared."""
    loaded_here = loader.source["kind"] != "factory"
    if result.outcome != "undetermined" or not recipe.quantized or not loaded_here:
        return result
    load = functools.partial(_load, loader, recipe, device, prepared=False)
    return kbit_preparation.judged(result, load, recipe, None, _asked_dtype(recipe) or "")


def _load(loader: Any, recipe: Recipe, device: str, *, prepared: bool = True) -> Any:
    """The real model as a training script loads it; ``prepared`` for training where quantized.

    Raises:
        EvidenceError: there are no weights, or only pickled ones.
    """
    if loader.source["kind"] == "factory":
        return loader.build().to(device)
    if loader.source["kind"] == "arch":
        raise EvidenceError(
            f"arch:{loader.source['name']} has no weights; give a folder or a hub id, "
            "or use --depth tiny"
        )
    folder = weights_folder(loader.source)
    wanted = _asked_dtype(recipe)
    options = training_setup.loading_options(recipe, wanted)
    stays = checkpoint_quantization.other_than_bitsandbytes(loader.config, recipe) is not None
    options |= _quantization(loader.config, recipe, stays)
    if recipe.quantized or stays:
        options["device_map"] = {"": device}
    if loader.source["trust_remote_code"]:
        options["trust_remote_code"] = True
    from lora_doctor.model.loading import resized

    model = loader.model_class.from_pretrained(
        str(folder), use_safetensors=True, local_files_only=True, **options
    )
    resized(model, loader.source)
    if recipe.quantized:
        return training_setup.for_kbit_training(model, recipe) if prepared else model
    return model if stays else model.to(device)


def _quantization(config: Any, recipe: Recipe, stays: bool) -> dict[str, Any]:
    """The ``quantization_config`` that the recipe hands over. ``stays``: the checkpoint is
    quantized, not by bitsandbytes, and the recipe leaves it so."""
    by_recipe = recipe.origins.get(f"load_in_{recipe.quantized}") != "checkpoint"
    if recipe.quantized and by_recipe:
        return {"quantization_config": training_setup.quantization_config(recipe)}
    stored = checkpoint_quantization.stored(config)
    if stored is not None and recipe.get("dequantize") and not stays:
        return {"quantization_config": checkpoint_quantization.dequantizing(stored)}
    return {}


def _asked_dtype(recipe: Recipe) -> str | None:
    """The recipe's, else the checkpoint's own. Beside quantization ``None`` where nobody has asked:
    the library's own choice decides what the layers are that are not quantized."""
    if recipe.quantized and recipe.origins.get("dtype") in (None, "proposed"):
        return None
    return recipe.get("dtype") or "auto"


def allowed_downloads(name: str, listed: int | None) -> Downloads:
    """How many bytes the library may download: what the hub lists, and what fits on the disk."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    there = next((folder for folder in (cache, *cache.parents) if folder.exists()), Path.cwd())
    free = shutil.disk_usage(there).free
    wanted = free if listed is None else DOWNLOAD_TIMES * listed + LISTING_BYTES
    if wanted < free:
        return Downloads(wanted, f"{name} is listed with {size_in_words(listed or 0)}")
    return Downloads(free, f"the disk of {there} has no more room; set HF_HUB_CACHE to another one")


def weights_folder(source: Mapping[str, Any]) -> Path:
    """The folder with the weights; those of a hub id are downloaded (safetensors only).

    Raises:
        EvidenceError: it holds none.
    """
    if source["kind"] == "hub":
        from huggingface_hub import snapshot_download

        patterns = [*_FILES, "*.py"] if source["trust_remote_code"] else list(_FILES)
        report_progress(f"downloading {source['name']}")
        try:
            folder = Path(
                snapshot_download(
                    source["name"], revision=source["revision"], allow_patterns=patterns
                )
            )
        except Exception as error:
            kind = "" if isinstance(error, EvidenceError) else f"{type(error).__name__}: "
            raise EvidenceError(
                f"the weights of {source['name']} cannot be obtained: {kind}{one_line(error, 200)}",
                remedy="hub",
            ) from error
    else:
        folder = Path(source["folder"])
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        reason = "only pickled weights, which are never loaded" if pickled else "no weights"
        raise EvidenceError(f"{folder} holds {reason}; convert them to safetensors")
    return folder
