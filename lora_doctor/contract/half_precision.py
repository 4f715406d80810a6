"""Where a recipe asks for float16, and how large its numbers are."""

from __future__ import annotations

from lora_doctor.recipe.recipe import Recipe

#: The largest finite number in float16.
LARGEST_FLOAT16 = 65504.0


def float16_keys(recipe: Recipe) -> tuple[str, ...]:
    """The keys by which somebody has chosen that the model computes in float16."""
    return _keys(recipe, "float16", "fp16")


def bfloat16_keys(recipe: Recipe) -> tuple[str, ...]:
    """The keys by which somebody has chosen that the model computes in bfloat16."""
    return _keys(recipe, "bfloat16", "bf16")


def _keys(recipe: Recipe, dtype: str, autocast: str) -> tuple[str, ...]:
    keys = []
    if recipe.get("dtype") == dtype and recipe.origins.get("dtype") != "proposed":
        keys.append("dtype")
    if recipe.get(autocast):
        keys.append(autocast)
    if recipe.get("load_in_4bit") and recipe.get("bnb_4bit_compute_dtype") == dtype:
        keys.append("bnb_4bit_compute_dtype")
    return tuple(keys)
