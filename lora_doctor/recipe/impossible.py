"""A value that no key of its name can have, and that stands in the user's file all the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_doctor.static.place import Place


@dataclass(frozen=True)
class Impossible:
    """A value that the recipe leaves out. What a library makes of it is for a rule to find out."""

    #: The key of the recipe.
    key: str
    #: What stands in the file.
    value: Any
    #: Why it cannot be, as the reader says it: where, which key, what it has to be.
    said: str
    #: Where it stands; ``None`` where the reader does not know.
    place: Place | None = None
