"""A tiny model saved and loaded again, as a training script loads the real one: in the recipe's
dtype and quantization.

Runs in a forked child; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.model import training_setup
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.note import Note
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


@contextlib.contextmanager
def saved(model: Any) -> Iterator[str]:
    """A folder with the model in it, for the time of the block."""
    with temporary_folder() as folder:
        # Saving writes class names and dtypes into the config; the caller's stays as it is.
        config = copy.deepcopy(model.config)
        model.save_pretrained(folder, safe_serialization=True)
        model.config = config
        yield folder
