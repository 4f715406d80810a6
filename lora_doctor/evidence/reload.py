"""A tiny model saved and loaded again, as a training script loads the real one: in the recipe's
dtype and quantization.

Runs in a forked child; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from lora_doctor.contract.recorder import Recorder
from lora_doctor.errors import EvidenceError
from lora_doctor.model import training_setup
from lora_doctor.model.auto_classes import quiet
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.note import Note
from lora_doctor.results.verification import Verification
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.sandbox.temporary import temporary_folder
from lora_doctor.text import one_line


def quantized(cls: Any, folder: str, recipe: Recipe, dtype: str, device: str) -> Any:
    """The model saved in a folder, loaded with the recipe's quantization; ``dtype`` of what is not
    quantized, empty for the library's choice.

    Raises:
        EvidenceError: layers got no weights.
    """
    options = training_setup.loading_options(recipe, dtype or None)
    quantization = training_setup.quantization_config(recipe)
    model = cls.from_pretrained(
        folder, quantization_config=quantization, device_map={"": device}, **options
    )
    bare = [
        path
        for path, layer in model.named_modules()
        if _is_quantized_layer(layer) and not _is_quantized_layer(getattr(layer, "weight", None))
    ]
    if bare:
        raise EvidenceError(
            f"transformers does not find what it has just saved: {len(bare)} quantized layers got "
            f"no weights, the first is {bare[0]}"
        )
    return model


def _is_quantized_layer(value: Any) -> bool:
    """Whether a layer or a weight is one of bitsandbytes' own."""
    return type(value).__module__.partition(".")[0] == "bitsandbytes"


def reload(model: Any, recipe: Recipe, dtype: str, device: str, notes: list[Note]) -> Any:
    """The model saved and loaded again with the recipe's dtype and quantization.

    ``from_pretrained`` does more than ``.to(dtype)``: it keeps some layers in float32. ``notes`` is
    told when this transformers cannot quantize here.
    """
    options = training_setup.loading_options(recipe, dtype or "float32")
    with saved(model) as folder:
        if recipe.quantized:
            try:
                loaded = quantized(type(model), folder, recipe, dtype, device)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reason = f"{type(error).__name__}: {one_line(error, 160)}"
                text = f"run without {recipe.quantized} quantization, which is not proven: {reason}"
                notes.append(Note("not-proven", text, reason))
            else:
                return training_setup.for_kbit_training(loaded, recipe)
        return type(model).from_pretrained(folder, **options)


def is_own_code(model: Any) -> bool:
    """Whether the class of a model is code of its repository, which transformers imports there, and
    has no way of loading of its own."""
    cls = type(model)
    written_for = getattr(getattr(cls, "from_pretrained", None), "__func__", None)
    from transformers import PreTrainedModel

    return (
        cls.__module__.startswith("transformers_modules.")
        and written_for is PreTrainedModel.from_pretrained.__func__
    )


def as_loaded(model: Any) -> Any:
    """The model as ``from_pretrained`` of its class makes it of the same config and weights, in
    float32: a class that can be constructed may be one that this release cannot load, and what a
    constructor computes may not outlive loading. Raises what it raises."""
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    options = training_setup.loading_options(Recipe(), "float32")
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with quiet():
        return type(model).from_pretrained(None, config=config, state_dict=weights, **options)


def buffers_without_values(model: Any) -> tuple[str, ...]:
    """Names of the buffers that the constructor computes and that have no values once
    ``from_pretrained`` has loaded the model: what they hold then is what lay in memory.

    Both are made with fresh memory filled (NaN, the largest integer), so that the answer is the
    same at each run. Empty where this torch cannot fill it.
    """
    with _fresh_memory_filled() as filled, quiet():
        if not filled:
            return ()
        made = type(model)(copy.deepcopy(model.config))
        loaded = as_loaded(model)
    computed = {name for name, buffer in made.named_buffers() if not _is_fill(buffer)}
    return tuple(
        name for name, buffer in loaded.named_buffers() if name in computed and _is_fill(buffer)
    )


@contextlib.contextmanager
def _fresh_memory_filled() -> Iterator[bool]:
    """Fill what torch allocates, for the time of the block; whether this torch does."""
    import torch

    flags = getattr(torch.utils, "deterministic", None)
    if not getattr(flags, "fill_uninitialized_memory", False):
        yield False
        return
    strict, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield True
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)


def _is_fill(buffer: Any) -> bool:
    """Whether a buffer holds nothing but what torch fills fresh memory with."""
    import torch

    if buffer.device.type == "meta" or not buffer.numel() or buffer.dtype == torch.bool:
        return False
    if buffer.dtype.is_floating_point or buffer.dtype.is_complex:
        return bool(buffer.isnan().all())
    return bool((buffer == torch.iinfo(buffer.dtype).max).all())


def lacks_values(names: tuple[str, ...], depth: str, device: str) -> Verification:
    """A model that loading leaves with such buffers is not the one that was constructed: the first
    check failed, and no other says anything."""
    recorder = Recorder()
    detail = f"without values once it is loaded: {names[0]}"
    recorder.add("builds", False, len(names), "0 buffers without values", detail)
    return Verification(
        outcome="failed",
        depth=depth,
        device=device,
        dtype="",
        checks=recorder.checks("not run: builds failed"),
        empty_buffers=names,
    )


def does_not_load(error: Exception, depth: str, device: str) -> Verification:
    """Loading is part of the recipe: what it raises is a failed check."""
    recorder = Recorder()
    recorder.fail("builds", error)
    return Verification(
        outcome="failed",
        depth=depth,
        device=device,
        dtype="",
        checks=recorder.checks("not run: builds failed"),
        failure=recorder.failure,
    )


@contextlib.contextmanager
def saved(model: Any) -> Iterator[str]:
    """A folder with the model in it, for the time of the block."""
    with temporary_folder() as folder:
        # Saving writes class names and dtypes into the config; the caller's stays as it is.
        config = copy.deepcopy(model.config)
        model.save_pretrained(folder, safe_serialization=True)
        model.config = config
        yield folder
