"""Changes: an edit of the recipe, or a patch of the running process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class _Remove:
    """The value of an edit that takes a key out of the recipe."""

    def __repr__(self) -> str:
        return "REMOVE"


REMOVE = _Remove()

#: A key that begins so is an entry of the user's file that is no key of a recipe, under the name
#: that its framework has for it (``entry:use_peft``).
ENTRY = "entry:"


@dataclass(frozen=True)
class Edit:
    """One key of the recipe set to a value, or taken out."""

    #: Key of the recipe.
    key: str
    #: The new value; ``REMOVE`` takes the key out.
    value: Any

    def to_json(self) -> dict[str, Any]:
        if self.value is REMOVE:
            return {"key": self.key, "remove": True}
        return {"key": self.key, "value": self.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Edit:
        return cls(data["key"], REMOVE if data.get("remove") is True else data["value"])


@dataclass(frozen=True)
class Rewrite:
    """A piece of a training script's or notebook's text, replaced: for what no key says, such as
    the name of an argument or the order of two lines."""

    #: First character that is replaced, counted from 0 in the file's text, or in the cell's.
    start: int
    #: The character behind the last one that is replaced.
    end: int
    #: What stands there.
    old: str
    #: What replaces it.
    new: str
    #: Number of the cell of a notebook, from 1; ``None`` in a script.
    cell: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "end": self.end,
            "old": self.old,
            "new": self.new,
            "cell": self.cell,
        }


@dataclass(frozen=True)
class Patch:
    """A patch of the running process."""

    #: Name of a file in ``prescription/patches``.
    name: str
    #: What the patch is told.
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "parameters": dict(self.parameters)}
