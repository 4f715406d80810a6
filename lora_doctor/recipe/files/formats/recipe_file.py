"""Our recipe file: PEFT's and transformers' key names, flat, in YAML or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.recipe.files.spelling import Spelling, Spellings
from lora_doctor.recipe.keys import ALIASES, PREFIXED

NAME = "recipe file"
SPECIFICITY = 0  # asked last
COMPLETE = False
IGNORES_UNKNOWN = False

SPELLINGS = Spellings(
    *(Spelling(key, name) for name, key in {**ALIASES, **PREFIXED}.items()),
    same_name=lambda key: True,
)


def recognises(values: Mapping[str, Any]) -> bool:
    """Everything that no other format claims: what does not belong is refused by name."""
    return True
