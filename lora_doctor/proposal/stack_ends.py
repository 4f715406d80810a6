"""The first or the last layers of a stack, which go by other numbers at full size.

Some layers are passed by because of where they stand: behind the last layer of a prefix only its
keys and values are read (PI0), of a vision tower the features before the last. The model that was
run has fewer layers; its last is the last there. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_doctor.results.structure import Structure


def at_an_end(structure: Structure, pattern: str, paths: Sequence[str], count: int) -> list[str]:
    """The paths at full size of layers of this pattern, where these ``paths`` are exactly the first
    or the last of the ``count`` that the run had; else nothing."""
    stack, star, rest = pattern.partition(".*.")
    alike = {
        group.pattern: group.count
        for group in structure.groups
        if group.pattern.startswith(f"{stack}.*.") and group.pattern.count("*") == 1
    }
    full = alike.get(pattern, 0)
    some = len(paths)
    if not star or "*" in rest or some >= count or full < max(alike.values(), default=0):
        return []  # or not in every layer of the stack: their numbers are not known
    for numbers, at_full_size in (
        (range(some), range(some)),
        (range(count - some, count), range(full - some, full)),
    ):
        if set(paths) == {f"{stack}.{number}.{rest}" for number in numbers}:
            return [f"{stack}.{number}.{rest}" for number in at_full_size]
    return []


def excluding(targets: str | list[str], paths: Sequence[str]) -> str:
    """``target_modules`` that name what ``targets`` name, but for these paths."""
    ahead = "|".join(re.escape(path) + "$" for path in dict.fromkeys(paths))
    if isinstance(targets, str):
        return f"(?!{ahead})(?:{targets})"
    ends = "|".join(re.escape(entry) for entry in targets)
    return rf"(?!{ahead})(?:.*\.)?(?:{ends})"
