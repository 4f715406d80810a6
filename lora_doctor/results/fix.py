"""A fix: a change that removes a finding, with how safe it is and whether it was run here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from lora_doctor.recipe.edit import Edit, Patch, Rewrite
from lora_doctor.results import display
from lora_doctor.results.depth import Depth

Safety = Literal["safe", "unproven", "unsafe", "manual"]
Outcome = Literal["passed", "removed", "failed", "not-executed"]


@dataclass(frozen=True)
class Execution:
    """What came out when a fix was applied to the recipe and run on this machine."""

    #: ``passed``: the finding is gone and the training contract passed. ``removed``: the finding is
    #: gone, and the contract comes further and still fails, or could be run in part only, without
    #: the quantization that this machine lacks, or only the user's text was changed, which was read
    #: again. ``failed``: the finding is still there, or training fails as before, or in what
    #: worked. ``not-executed``: nothing was run, or what was run came to no verdict.
    outcome: Outcome = "not-executed"
    #: How the training contract came out, or why it was not run.
    detail: str = "nothing was run"
    #: Depth at which the contract was run; ``None`` when it was not.
    depth: Depth | None = None
    #: Codes of the rules whose fixes were in force as well.
    beside: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "detail": self.detail,
            "depth": self.depth,
            "beside": list(self.beside),
        }


@dataclass(frozen=True)
class Fix:
    """A change that removes a finding."""

    #: What to do, in words.
    title: str
    #: ``safe``: the same training, made to work, and a run has confirmed it: see ``executed``.
    #: ``unproven``: should not change training, which no run has confirmed. ``unsafe``: may
    #: change the trained result, memory or speed; applied only on demand. ``manual``: words only,
    #: never applied. A rule says ``safe``; what was not run is made ``unproven``.
    safety: Safety
    #: Edits of the recipe; all of them together.
    edits: tuple[Edit, ...] = ()
    #: A patch of the training process, where no edit can do it.
    patch: Patch | None = None
    #: Whether it was applied and run here.
    executed: Execution = Execution()
    #: Pieces of the user's script or notebook that are replaced; all of them together.
    rewrites: tuple[Rewrite, ...] = ()
    #: Whether ``lora-doctor fix --adapter DIR --apply`` makes this change: it writes the saved
    #: adapter into a new folder.
    writes_adapter: bool = False

    def __post_init__(self) -> None:
        changes = bool(self.edits) or self.patch is not None or bool(self.rewrites)
        if changes == (self.safety == "manual"):
            raise ValueError(f"fix {self.title!r}: 'manual' means words only, others must change")

    def __str__(self) -> str:
        """How safe it is, and what to do, on one line."""
        return display.one_line((f"{self.safety}:", self.title))

    def after(self, executed: Execution) -> Fix:
        """This fix, now that it was run, or was not."""
        safety = self.safety
        if safety in ("safe", "unproven"):
            safety = "safe" if executed.outcome == "passed" else "unproven"
        return replace(self, safety=safety, executed=executed)

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "safety": self.safety,
            "edits": [edit.to_json() for edit in self.edits],
            "patch": self.patch.to_json() if self.patch else None,
            "executed": self.executed.to_json(),
            "rewrites": [rewrite.to_json() for rewrite in self.rewrites],
            "writes_adapter": self.writes_adapter,
        }
