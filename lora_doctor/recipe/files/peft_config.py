"""PEFT's own ``adapter_config.json``: every field that is not set is PEFT's business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.recipe.keys import ALIASES, OUTER_KEYS
from lora_doctor.recipe.recipe import Recipe, make_recipe

NAME = "PEFT adapter config"


def recognises(values: Mapping[str, Any]) -> bool:
    """A ``peft_type``, and nothing about loading or the training loop, which PEFT would refuse."""
    return "peft_type" in values and all(holds(key) for key in values)


def holds(key: str) -> bool:
    """Whether the file may have this key."""
    return ALIASES.get(key, key) not in OUTER_KEYS


def read(values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe; keys that nobody knows are left out: a newer PEFT may have written them."""
    return make_recipe(values, where=where, origin="file", complete=True, ignore_unknown=True)
