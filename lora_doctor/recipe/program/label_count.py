"""How many labels a program gives the model that it loads."""

from __future__ import annotations

from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.program.values import Items, Known, Mapping, Value

#: Each of them decides it; another config may say anything.
_DECIDE = ("num_labels", "id2label", "label2id", "config")


def label_count(setup: Setup) -> int | None:
    """The number, 0 where the program decides it and the text does not say how; ``None`` where it
    leaves it to the checkpoint's config."""
    loader = setup.roles.loader
    if loader is None or loader.open is not None:
        return 0
    given = {name: loader.value(name) for name in _DECIDE if loader.value(name) is not None}
    if not given:
        return None
    return next((found for found in map(_count, given.values()) if found), 0)


def _count(value: Value | None) -> int:
    if isinstance(value, Known) and type(value.value) is int:
        return value.value
    if isinstance(value, Mapping) and not value.gaps:
        return len(value.entries)
    if isinstance(value, Items) and value.open is None:
        return len(value.items)
    return 0
