"""PEFT's own ``adapter_config.json``: every field that is not set is PEFT's business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.recipe.files.formats import recipe_file
from lora_doctor.recipe.files.spelling import Spelling, Spellings
from lora_doctor.recipe.keys import OUTER_KEYS

NAME = "PEFT adapter config"
SPECIFICITY = 10
COMPLETE = True
IGNORES_UNKNOWN = True  # a newer PEFT may have written them

SPELLINGS = Spellings(
    Spelling("lora_alpha", "alpha"),  # LoHaConfig and LoKrConfig
    same_name=lambda key: key not in OUTER_KEYS,
)


def recognises(values: Mapping[str, Any]) -> bool:
    """A ``peft_type``, and no name that means something to us but not to PEFT: how to load
    (``torch_dtype``), the training loop, or another tool's spelling (``lora_target_modules``)."""
    ours = recipe_file.SPELLINGS
    return "peft_type" in values and all(SPELLINGS.keys(name) == ours.keys(name) for name in values)
