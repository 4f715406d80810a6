"""The diagnosis: the one result object that every report is rendered from.

``to_json`` is the contract with the outside; its schema is ``schema/diagnosis-1.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results import display
from lora_doctor.results.finding import SEVERITIES, Finding
from lora_doctor.results.fix import Fix
from lora_doctor.results.memory_plan import Plan
from lora_doctor.results.note import Note
from lora_doctor.results.structure import Structure
from lora_doctor.results.verification import Verification
from lora_doctor.static.model_source import ModelSource

SCHEMA_VERSION = "1"
Verdict = Literal["healthy", "findings", "undetermined"]


@dataclass(frozen=True)
class Skipped:
    """A rule that could not be asked, and why. Never shown as passed."""

    rule: str
    name: str
    reason: str


@dataclass(frozen=True)
class Gathered:
    """A piece of evidence: where it came from and what it cost, or why it could not be had."""

    name: str
    source: str
    seconds: float
    unavailable: str | None = None
    peak_memory: int | None = None


@dataclass(frozen=True)
class AppliedFix:
    """A fix that was applied, or would be (``check`` and ``fix`` without ``--apply``)."""

    rule: str
    fix: Fix


@dataclass(frozen=True)
class Diagnosis:
    """Everything that one run found out.

    ``recipe`` is the recipe that was checked, with open keys filled; ``fixed_recipe`` the recipe
    after the fixes in ``applied``. ``before`` and ``after`` are verifications; ``next_command``
    is what the user types next. ``verdict``: ``healthy`` only when the training contract was
    executed and held and no rule found an error or a warning.
    """

    model: ModelSource
    recipe: Recipe
    depth: str
    environment: Mapping[str, Any]
    findings: tuple[Finding, ...] = ()
    passed: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    gathered: tuple[Gathered, ...] = ()
    structure: Structure | None = None
    before: Verification | None = None
    after: Verification | None = None
    remaining: tuple[Finding, ...] | None = None
    applied: tuple[AppliedFix, ...] = ()
    fixed_recipe: Recipe | None = None
    recipe_diff: str = ""
    next_command: str = ""
    undetermined: str | None = None
    memory_plan: Plan | None = None
    seconds: float = 0.0
    notes: tuple[Note, ...] = ()

    @property
    def verdict(self) -> Verdict:
        if any(finding.severity != "info" for finding in self.findings):
            return "findings"
        contract_held = self.before is not None and self.before.outcome == "passed"
        return "healthy" if contract_held and self.undetermined is None else "undetermined"

    def worst(self) -> int:
        """Index into ``SEVERITIES`` of the worst finding; past the end when there is none."""
        ranks = [SEVERITIES.index(finding.severity) for finding in self.findings]
        return min(ranks, default=len(SEVERITIES))

    def __repr__(self) -> str:
        """One line; ``print`` shows the report."""
        codes = ", ".join(dict.fromkeys(finding.rule for finding in self.findings))
        words = ("<Diagnosis of", f"{self.model}:", self.verdict, codes and f"({codes})")
        return f"{display.one_line(words)}, depth {self.depth}>"

    def __str__(self) -> str:
        """The report as plain text."""
        return display.report_text(self)

    def _repr_html_(self) -> str:
        """The report for a notebook."""
        return display.report_cell(self)

    def to_json(self) -> dict[str, Any]:
        """The machine-readable diagnosis; valid against ``schema/diagnosis-1.json``."""
        structure = self.structure
        return {
            "schema_version": SCHEMA_VERSION,
            "model": {
                **self.model.to_json(),
                "model_class": structure.model_class if structure else None,
                "model_type": structure.model_type if structure else None,
                "parameters": structure.total_parameters if structure else None,
            },
            "recipe": self.recipe.to_json(),
            "environment": dict(self.environment),
            "depth": self.depth,
            "verdict": self.verdict,
            "undetermined": self.undetermined,
            "findings": [finding.to_json() for finding in self.findings],
            "remaining": (
                None if self.remaining is None else [item.to_json() for item in self.remaining]
            ),
            "passed": list(self.passed),
            "skipped": [vars(item) for item in self.skipped],
            "applied": [{"rule": item.rule, **item.fix.to_json()} for item in self.applied],
            "fixed_recipe": self.fixed_recipe.to_json() if self.fixed_recipe else None,
            "recipe_diff": self.recipe_diff,
            "verification": {
                "before": self.before.to_json() if self.before else None,
                "after": self.after.to_json() if self.after else None,
            },
            "structure": structure.to_json() if structure else None,
            "memory_plan": self.memory_plan.to_json() if self.memory_plan else None,
            "next_command": self.next_command,
            "notes": [asdict(note) for note in self.notes],
            "timings": {
                "total_seconds": round(self.seconds, 3),
                "evidence": [vars(item) for item in self.gathered],
            },
        }


def patches_of(diagnosis: Diagnosis) -> tuple[Patch, ...]:
    """The patches among the applied fixes."""
    return tuple(item.fix.patch for item in diagnosis.applied if item.fix.patch)
