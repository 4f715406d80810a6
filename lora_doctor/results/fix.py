"""A fix: a change that removes a finding, with how safe it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.recipe.edit import Edit, Patch

Safety = Literal["safe", "unsafe", "manual"]


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
