"""Whether a program gives its model's config a padding id."""

from __future__ import annotations

import re

from lora_doctor.recipe.program.objects import is_none, top
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.installed.environment import installed_text, package_folder

_SET = re.compile(r"\bpad_token_id[\"']?\s*[=:](?!=)|setattr\([^)]*pad_token_id")


def sets_padding_id(setup: Setup) -> bool:
    """Whether it is set by the program, or by its trainer: those of TRL do, and the Trainer of
    transformers where it is given the tokenizer, as far as the installed one aligns them."""
    if any(_SET.search(unit.python) for unit in setup.program.units):
        return True
    trainer = setup.roles.trainer
    if trainer is None or top(trainer.name) == "trl":
        return trainer is not None
    given = any(not is_none(trainer.value(name)) for name in ("processing_class", "tokenizer"))
    return given and _trainer_aligns()


def _trainer_aligns() -> bool:
    folder = package_folder("transformers")
    return folder is not None and "align_special_tokens" in installed_text(folder / "trainer.py")
