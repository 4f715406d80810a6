"""A model on the meta device, quantized by bitsandbytes as loading it would.

transformers replaces the layers, bitsandbytes' own quantization makes packed weights and constants
of the right shapes without numbers, and its own matrix products run on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from lora_doctor.memory_plan.eight_bit import without_outliers
from lora_doctor.model.quantization import Matcher
from lora_doctor.model.training_setup import quantization_config
from lora_doctor.recipe.recipe import Recipe


def quantize(model: Any, recipe: Recipe, kind: Literal["4bit", "8bit"]) -> Any:
    """The model (changed in place) with quantized layers; raises what the libraries raise."""
    import bitsandbytes as bnb

    config = quantization_config(recipe)
    model = Matcher(model, kind).replace_in(model, config)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            _in_4_bits(module)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            _in_8_bits(module)
    model.is_quantized = True
    setattr(model, f"is_loaded_in_{kind}", True)
    return model


def constants(module: Any) -> list[Any]:
    """The tensors beside the packed weight that a quantized layer keeps."""
    state = getattr(module.weight, "quant_state", None)
    found = []
    while state is not None:
        held = (state.absmax, state.code, getattr(state, "offset", None))
        found += [one for one in held if hasattr(one, "untyped_storage")]
        state = getattr(state, "state2", None)
    scale = getattr(module.weight, "SCB", None)
    return [*found, scale] if scale is not None else found


@contextlib.contextmanager
def _maps_of_their_own() -> Iterator[None]:
    """bitsandbytes keeps its code books for later, on the device of whoever came first."""
    import bitsandbytes as bnb

    kept: dict[str, Any] = getattr(bnb.functional, "name2qmap", {})
    before = dict(kept)
    try:
        yield
    finally:
        kept.clear()
        kept.update(before)


def _in_4_bits(module: Any) -> None:
    import bitsandbytes as bnb
    import torch

    plain = module.weight
    weight = torch.empty(
        (module.out_features, module.in_features), dtype=torch.float16, device="meta"
    )
    with _maps_of_their_own():
        packed, state = bnb.functional.quantize_4bit(
            weight,
            blocksize=plain.blocksize,
            compress_statistics=plain.compress_statistics,
            quant_type=plain.quant_type,
            quant_storage=plain.quant_storage,
        )
    module.weight = bnb.nn.Params4bit(
        packed,
        requires_grad=False,
        quant_state=state,
        blocksize=plain.blocksize,
        compress_statistics=plain.compress_statistics,
        quant_type=plain.quant_type,
        quant_storage=plain.quant_storage,
        module=module,
        bnb_quantized=True,
    )
    module.quant_state = state


def _in_8_bits(module: Any) -> None:
    import bitsandbytes as bnb
    import torch

    shape = (module.out_features, module.in_features)
    weight = torch.empty(shape, dtype=torch.float16, device="meta")
    packed, scale, _ = bnb.functional.int8_vectorwise_quant(weight)
    module.weight = bnb.nn.Int8Params(
        packed, requires_grad=False, has_fp16_weights=False, CB=packed, SCB=scale
    )
    without_outliers(module)
