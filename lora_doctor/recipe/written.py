"""Where a file says what a recipe holds: the origin of each key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_doctor.recipe.keys import BY_NAME
from lora_doctor.static.place import Place


@dataclass(frozen=True)
class Written:
    """The places of a recipe's keys in the user's file."""

    #: Key of the recipe to where its value stands.
    places: Mapping[str, Place] = field(default_factory=dict)
    #: Part of a recipe (``adapter``, ``loading``, ...) to where a key of it would be added.
    parts: Mapping[str, Place] = field(default_factory=dict)
    #: What the file does not say, each with its name, its line and how to say it.
    asked: tuple[str, ...] = ()
    #: On what condition the file was read so, such as a question about the GPU.
    assumed: tuple[str, ...] = ()
    #: The content of the file that was read, where that is a program.
    data: bytes | None = field(default=None, repr=False)
    #: The words of the program's command line that were given.
    arguments: tuple[str, ...] = ()

    def place_of(self, key: str) -> Place | None:
        """Where a key stands, or where it would be added; ``None`` where the file has no place."""
        if key in self.places:
            return self.places[key]
        known = BY_NAME.get(key)
        return self.parts.get(known.part if known is not None else "adapter")
