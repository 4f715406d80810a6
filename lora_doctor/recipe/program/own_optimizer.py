"""Whether a program brings an optimizer of its own: the Trainer's ``learning_rate`` and ``optim``
then say little."""

from __future__ import annotations

import re

from lora_doctor.recipe.program.objects import is_none
from lora_doctor.recipe.program.setup import Setup

_HANDED_OVER = ("optimizers", "optimizer_cls_and_kwargs")
_MADE = re.compile(r"\.optimizer\s*=|create_optimizer|get_optimizer_cls_and_kwargs")


def brings_optimizer(setup: Setup) -> bool:
    """Whether the Trainer may be handed an optimizer, or the program makes it in its place."""
    trainer = setup.roles.trainer
    handed = trainer is not None and any(
        name in trainer.keywords and not is_none(trainer.value(name)) for name in _HANDED_OVER
    )
    return handed or any(_MADE.search(unit.python) for unit in setup.program.units)
