"""The file of a training framework that a recipe was read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_doctor.recipe.cut import Cut
from lora_doctor.static.place import Place


@dataclass(frozen=True)
class SetUp:
    """The file of a training framework that a recipe was read from, as the framework reads it."""

    #: The format by its name, such as ``LLaMA-Factory``.
    format: str
    #: Every entry, that of the command line before that of the file which it names.
    entries: Mapping[str, Any] = field(default_factory=dict)
    #: Entry to where it stands.
    places: Mapping[str, Place] = field(default_factory=dict)
    #: The files that were read: the one that was given first, then those that it names.
    files: tuple[str, ...] = ()
    #: Entries that the framework does not have, each with the one that was probably meant.
    unknown: Mapping[str, str] = field(default_factory=dict)
    #: Variables that the set-up puts into the environment of the training process.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: What starts the training process (``accelerate``, ``torchrun``, ...); empty without.
    launcher: str = ""
    #: Its options: name to value.
    launcher_options: Mapping[str, Any] = field(default_factory=dict)
    #: Where its shell file ends the command too early; empty once it was stored.
    cuts: tuple[Cut, ...] = field(default=(), compare=False)
    #: The recipe that other entries at these places amount to; ``None`` once it was stored.
    read: Callable[[Mapping[str, Any], Mapping[str, Place]], Any] | None = field(
        default=None, compare=False, repr=False
    )

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "entries": dict(self.entries),
            "places": {name: place.to_json() for name, place in self.places.items()},
            "files": list(self.files),
            "unknown": dict(self.unknown),
            "environment": dict(self.environment),
            "launcher": self.launcher,
            "launcher_options": dict(self.launcher_options),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SetUp:
        return cls(
            data["format"],
            dict(data["entries"]),
            {name: Place.from_json(place) for name, place in data["places"].items()},
            tuple(data["files"]),
            dict(data["unknown"]),
            dict(data["environment"]),
            data["launcher"],
            dict(data["launcher_options"]),
        )
