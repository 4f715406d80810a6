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
# A newer PEFT may have written a key that this one does not know. It swallows mistyped keys, too:
# a format that people write by hand says False, and then every entry that spells a key which no
# recipe has is refused with the nearest name.
IGNORES_UNKNOWN = True

SPELLINGS = Spellings(
    # The key of the recipe, then the name of the entry: LoHaConfig and LoKrConfig say "alpha".
    Spelling("lora_alpha", "alpha"),
    # A key whose entry has the recipe's own name needs no Spelling, but it has to be let in here:
    # an entry that is neither is not read, and an edit of its key goes to the prescription.
    same_name=lambda key: key not in OUTER_KEYS,
)


def recognises(values: Mapping[str, Any]) -> bool:
    """A ``peft_type``, and no name that means something to us but not to PEFT: how to load
    (``torch_dtype``), the training loop, or another tool's spelling (``lora_target_modules``)."""
    ours = recipe_file.SPELLINGS
    return "peft_type" in values and all(SPELLINGS.keys(name) == ours.keys(name) for name in values)
