"""Numbers of an adapter config that suit the layers at full size, made smaller for a tiny model.

A block size of 256 divides a width of 4096 and not one of 64; a rank of 150 is below a width of
576. What fits there is to fit here, and what does not is to fail here as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from lora_doctor.model.adapter_sizes import is_plain_lora, refusal
from lora_doctor.model.loading import peft_config
from lora_doctor.recipe.recipe import Recipe


def with_adapters_left(recipe: Recipe) -> Recipe:
    """The recipe without ``module_dropout``, which leaves out whole adapters by chance: all of them
    at once in a model of two layers, after which nothing is left to learn, and never in one of
    thirty. One that leaves out every adapter every time stays."""
    share = recipe.get("module_dropout")
    if isinstance(share, float) and 0 < share < 1:
        return recipe.override({"module_dropout": 0.0}, "argument")
    return recipe


def with_sizes_that_fit(recipe: Recipe, model: Any, full_size: Callable[[], Any]) -> Recipe:
    """The recipe with one number made smaller, where PEFT takes the recipe at full size and not on
    ``model``. ``full_size``: makes the model of the real sizes, on the meta device; called only
    where PEFT does not take it here."""
    if is_plain_lora(recipe):
        return recipe
    refused = refusal(model, recipe)
    if refused is None or refusal(full_size(), recipe) is not None:
        return recipe
    smaller = _smaller(recipe, refused.message)
    return next((one for one in smaller if refusal(model, one) is None), recipe)


def _smaller(recipe: Recipe, message: str) -> Iterator[Recipe]:
    """The recipe with each of its numbers at powers of two below it, those that PEFT's message
    names first."""
    config = peft_config(recipe)
    values: dict[str, Any] = {
        one.name: getattr(config, one.name, None) for one in dataclasses.fields(config)
    }
    numbers = [key for key, value in values.items() if type(value) is int and value > 1]
    for key in sorted(numbers, key=lambda key: key not in message.replace("block size", key)):
        size = 1 << (values[key] - 1).bit_length()
        while (size := size // 2) >= 1:
            yield recipe.override(_at_most(recipe, values, key, size), "argument")


def _at_most(recipe: Recipe, values: dict[str, Any], key: str, size: int) -> dict[str, Any]:
    """What changes with this number: entries for single layers are no larger, and the scaling of
    LoRA stays."""
    changes: dict[str, Any] = {key: size}
    for name, value in values.items():
        if isinstance(value, dict) and value and all(type(n) is int for n in value.values()):
            changes[name] = {entry: min(number, size) for entry, number in value.items()}
    alpha = recipe.get("lora_alpha")
    if key == "r" and isinstance(alpha, (int, float)):
        changes["lora_alpha"] = alpha * size / values[key]
    return changes
