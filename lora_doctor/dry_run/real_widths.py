"""Whether the command failed because its own code has the widths of the real model: a head of
``nn.Linear(768, 3)`` on a model that was made 64 wide."""

from __future__ import annotations

import re

from lora_doctor.dry_run.captured import Captured

#: ``hidden_size 768 -> 64``, as the shrinking tells it.
_CHANGED = re.compile(r"\b(\d+) -> (\d+)\b")
#: What torch raises where shapes do not meet.
_SHAPES = re.compile(r"shape|size|dimension|expected input", re.IGNORECASE)


def has_real_widths(captured: Captured) -> bool:
    """Whether the message is about shapes, with a number of the real model and the one that stands
    in its place."""
    error = captured.error()
    if error is None or not _SHAPES.search(error.message):
        return False
    numbers = set(re.findall(r"\d+", error.message))
    changed = (
        pair
        for record in captured.all("model")
        for step in record.get("steps", ())
        for pair in _CHANGED.findall(step)
    )
    return any(old in numbers and new in numbers for old, new in changed)
