"""A fix: a change that removes a finding, with how safe it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.recipe.edit import Edit, Patch

Safety = Literal["safe", "unsafe", "manual"]


@dataclass(frozen=True)
class Fix:
    """A change that removes a finding."""

    #: What to do, in words.
    title: str
    #: ``safe``: training means the same, only now it works. ``unsafe``: may change what is learnt,
    #: memory or speed; applied only on demand. ``manual``: words only, never applied.
    safety: Safety
    #: Edits of the recipe; all of them together.
    edits: tuple[Edit, ...] = ()
    #: A patch of the training process, where no edit can do it.
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
