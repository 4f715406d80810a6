"""The tasks of a case that run code of the model: each in a child process, within limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_doctor.engine.child_failures import evidence_error
from lora_doctor.engine.limits import TaskLimits
from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Gathered
from lora_doctor.sandbox.outcome import Outcome
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.model_source import ModelSource


@dataclass(frozen=True)
class ChildTasks:
    """Runs functions named ``module:function`` that take a source, a recipe and patches.

    ``progress``: is told what goes on.
    """

    worker: Worker
    source: ModelSource
    patches: tuple[Patch, ...]
    progress: Callable[[str], None]

    def run(self, target: str, recipe: Recipe, limits: TaskLimits, **more: Any) -> Outcome:
        """The outcome of one task; ``more``: further arguments of the function, as JSON."""
        arguments = {
            "source": self.source.for_child(),
            "recipe": recipe.to_json(),
            "patches": [patch.to_json() for patch in self.patches],
            **more,
        }
        return self.worker.run(
            target,
            arguments,
            time_limit=limits.seconds,
            memory_limit=limits.memory,
            progress=self.progress,
            import_cwd=self.source.kind == "factory",
        )

    def error(self, what: str, outcome: Outcome, limits: TaskLimits) -> EvidenceError:
        """Why ``what`` cannot be had: see :func:`child_failures.evidence_error`."""
        return evidence_error(what, outcome, limits, self.worker.import_errors)


def cost(name: str, origin: str, outcome: Outcome) -> Gathered:
    """What a task cost, or why it gave nothing."""
    reason = outcome.failure.message if outcome.failure else None
    return Gathered(name, origin, round(outcome.seconds, 3), reason, outcome.peak_rss or None)
