"""How long the longest row is when it gets to the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.supervision import Supervision

#: TRL's default for ``max_length``.
TRL_LENGTH = 1024
#: A tokenizer without a limit says a number with thirty digits.
_NO_LIMIT = 10**9


def length_as_trained(
    seen: Supervision, recipe: Recipe, tokenizer_config: Mapping[str, Any]
) -> int:
    """Tokens of the longest row after what cuts it for certain: the limit of the recipe; without
    one, the limit that the tokenizer cuts at when asked to, and TRL's own for language models."""
    if seen.max_length is not None:
        return min(seen.longest, seen.max_length)
    limits = [seen.longest]
    own = tokenizer_config.get("model_max_length")
    if isinstance(own, (int, float)) and 0 < own < _NO_LIMIT:
        limits.append(int(own))
    if recipe.get("task_type") in (None, "CAUSAL_LM"):
        limits.append(TRL_LENGTH)
    return min(limits)
