"""A recipe that names single layers, on a tiny model that has fewer of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lora_doctor.recipe import Recipe

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
#: A number in a regular expression that is not part of a name such as ``w1`` or ``fc2``.
_LAYER_IN_REGEX = re.compile(r"(?<![A-Za-z_\d{,])\d+")


def fit(recipe: Recipe, model: Any) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with layer numbers that this model has, and the keys where that cannot be done.

    A number from the depth up is taken modulo the depth: layer 31 of 32 becomes layer 1 of 2. What
    a regular expression names cannot be moved; when it matches nothing, that is no answer.
    """
    depth = _depth(name for name, _ in model.named_modules())
    changes: dict[str, Any] = {}
    fixed: list[str] = []
    if not depth:
        return recipe, ()
    for key in ("layers_to_transform", "layer_indexes"):
        value = recipe.get(key)
        if isinstance(value, int):
            changes[key] = value % depth
        elif isinstance(value, (list, tuple)):
            changes[key] = sorted({int(number) % depth for number in value})
    for key in ("target_modules", "target_parameters", "exclude_modules", "modules_to_save"):
        value = recipe.get(key)
        if isinstance(value, str) and _LAYER_IN_REGEX.search(value):
            fixed.append(key)
        elif isinstance(value, (list, tuple)):
            changes[key] = list(dict.fromkeys(_renumber(name, depth) for name in value))
    if recipe.get("trainable_token_indices"):
        fixed.append("trainable_token_indices")
    changes = {key: value for key, value in changes.items() if value != recipe.get(key)}
    return (recipe.override(changes, "argument") if changes else recipe), tuple(fixed)


def _renumber(name: str, depth: int) -> str:
    return _NUMBER.sub(lambda match: str(int(match[0]) % depth), name)


def _depth(names: Iterable[str]) -> int:
    """The number of layers of the deepest stack; experts inside a layer do not count."""
    firsts = (re.search(r"\.(\d+)(?:\.|$)", name) for name in names)
    return max((int(match[1]) + 1 for match in firsts if match), default=0)
