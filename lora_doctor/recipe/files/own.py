"""Our recipe file: PEFT's and transformers' key names, flat, in YAML or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.recipe.recipe import Recipe, make_recipe

NAME = "recipe file"


def recognises(values: Mapping[str, Any]) -> bool:
    """Everything that no other format claims: what does not belong is refused by name."""
    return True


def holds(key: str) -> bool:
    """Whether the file may have this key."""
    return True


def read(values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe; an unknown key is refused with the nearest known one."""
    return make_recipe(values, where=where, origin="file")
