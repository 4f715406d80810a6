"""The tiny model in the quantization that its checkpoint comes in, where the quantizer runs here:
quantized by it, saved, and loaded as the checkpoint is.

Runs in a forked child; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.evidence.reload import saved
from lora_doctor.model import checkpoint_quantization, training_setup
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.text import one_line


def quantized_as(
    values: Mapping[str, Any], model: Any, recipe: Recipe, dtype: str, device: str
) -> Any:
    """The model out of a folder whose weights are quantized as those of the checkpoint are.

    Args:
        values: ``quantization_config`` of the checkpoint.
        model: in floating point, without adapters.

    Raises:
        EvidenceError: that cannot be done here; the text is the reason.
    """
    if checkpoint_quantization.quantizers() is None:
        raise EvidenceError("this transformers has no quantizer classes")
    try:
        config = checkpoint_quantization.config_of(values)
        quantizer = checkpoint_quantization.quantizer_class(values)
        if getattr(quantizer, "requires_calibration", False):
            raise EvidenceError("such layers are made of calibrated weights only")
        options = training_setup.loading_options(recipe, dtype or "float32")
        options["device_map"] = {"": device}
        with saved(model) as folder:
            quantized = type(model).from_pretrained(folder, quantization_config=config, **options)
        if not _quantizer_of(quantized).is_serializable():
            raise EvidenceError("this transformers does not save such weights")
        with saved(quantized) as folder:
            loaded = type(model).from_pretrained(folder, **options)
    except EvidenceError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise EvidenceError(f"{type(error).__name__}: {one_line(error, 200)}") from error
    if not _any_quantized(loaded, model):
        raise EvidenceError("no layer of the tiny model was quantized")
    return loaded


def _quantizer_of(model: Any) -> Any:
    """The quantizer that a model was loaded with.

    Raises:
        EvidenceError: it was loaded without one.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        raise EvidenceError("transformers loads the model without quantizing it")
    return quantizer


def _any_quantized(loaded: Any, plain: Any) -> bool:
    """Whether a layer or a weight is of another kind than in the model as it was."""
    import torch

    classes = {type(module) for module in plain.modules()}
    if any(type(module) not in classes for module in loaded.modules()):
        return True
    ordinary = (torch.Tensor, torch.nn.Parameter)
    return any(
        type(weight) not in ordinary or weight.element_size() == 1 for weight in loaded.parameters()
    )
