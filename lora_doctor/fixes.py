"""A fix: a change that removes a finding, with how safe it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Safety = Literal["safe", "unsafe", "manual"]


class _Remove:
    """The value of an edit that takes a key out of the recipe."""

    def __repr__(self) -> str:
        return "REMOVE"


REMOVE = _Remove()


@dataclass(frozen=True)
class Edit:
    """Set one key of the recipe to a value (``REMOVE`` takes the key out)."""

    key: str
    value: Any

    def to_json(self) -> dict[str, Any]:
        if self.value is REMOVE:
            return {"key": self.key, "remove": True}
        return {"key": self.key, "value": self.value}


@dataclass(frozen=True)
class Patch:
    """A patch of the running process: the name of a file in ``lora_doctor/patches``."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "parameters": dict(self.parameters)}


@dataclass(frozen=True)
class Fix:
    """What to change so that the finding goes away.

    ``safe``: training means the same, only now it works. ``unsafe``: may change what is learnt,
    memory or speed. ``manual``: words only, in ``title``; never applied by the tool.
    """

    title: str
    safety: Safety
    edits: tuple[Edit, ...] = ()
    patch: Patch | None = None

    def __post_init__(self) -> None:
        changes = bool(self.edits) or self.patch is not None
        if changes == (self.safety == "manual"):
            raise ValueError(f"fix {self.title!r}: 'manual' means words only, others must change")

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "safety": self.safety,
            "edits": [edit.to_json() for edit in self.edits],
            "patch": self.patch.to_json() if self.patch else None,
        }
