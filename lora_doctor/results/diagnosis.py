"""The diagnosis: the one result object that every report is rendered from.

``to_json`` is the contract with the outside; its schema is ``schema/diagnosis-2.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from lora_doctor.errors import Lack, LimitReached, Remedy
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results import display
from lora_doctor.results.budget import BudgetCheck
from lora_doctor.results.depth import Depth
from lora_doctor.results.finding import Finding
from lora_doctor.results.fingerprints import with_fingerprints
from lora_doctor.results.fix import Fix
from lora_doctor.results.from_json import from_json
from lora_doctor.results.note import Note
from lora_doctor.static.model_source import ModelSource

if TYPE_CHECKING:  # what depth static has no value of; from_json finds them
    from lora_doctor.results.dry_run import DryRun
    from lora_doctor.results.memory_plan import MemoryPlan
    from lora_doctor.results.structure import Structure
    from lora_doctor.results.supervision import Supervision
    from lora_doctor.results.verification import Verification

SCHEMA_VERSION = "2"
Verdict = Literal["healthy", "findings", "undetermined"]


@dataclass(frozen=True)
class Skipped:
    """A rule that could not be asked. Never shown as passed."""

    #: Code of the rule, such as ``LD101``.
    rule: str
    #: Name of the rule.
    name: str
    #: Why it could not be asked.
    reason: str
    #: What the user can change so that it can be asked: ``package``: install one. ``file``: make a
    #: file of the model readable. ``hub``: ask again when the hub answers. ``trust``: give
    #: ``--trust-remote-code``. ``limit``: raise a limit. ``null``: nothing; it has nothing to say
    #: here, or not at this depth. ``--strict`` counts the others.
    remedy: Remedy | None = None
    #: What another kind of run has and this one has not: ``weights``: the real weights. ``texts``:
    #: the texts that batches were made of. ``null``: it is not for such a lack that it was skipped.
    lacks: Lack | None = None


@dataclass(frozen=True)
class Gathered:
    """A piece of evidence: what it cost, or why it could not be had."""

    #: Such as ``structure`` or ``tiny``.
    name: str
    #: Where it came from.
    source: str
    #: What it took, in seconds.
    seconds: float
    #: Why it could not be had; ``None`` when it was had.
    unavailable: str | None = None
    #: Resident memory of the child process at its peak, in bytes; ``None`` when not measured.
    peak_memory: int | None = None


@dataclass(frozen=True)
class AppliedFix:
    """A fix that was applied, or would be (``check`` and ``fix`` without ``--apply``)."""

    #: Code of the rule that it answers.
    rule: str
    #: What it changes.
    fix: Fix


@dataclass(frozen=True)
class Accepted:
    """A finding that a team knows of and lives with: it is shown, and it fails no gate."""

    #: Of the finding: see :func:`fingerprints`.
    fingerprint: str
    #: ``baseline``: it is in the file of ``--baseline``. ``ignored``: a comment beside the setting,
    #: or the project's configuration, says so.
    by: Literal["baseline", "ignored"]
    #: The file of the baseline, or the reason that was given.
    reason: str
    #: Where a comment in the user's file says so: ``train.py:31``; empty where no comment does.
    where: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that one run found out."""

    #: The model source.
    model: ModelSource
    #: The recipe that was checked, with open keys filled.
    recipe: Recipe
    #: How far the run was to go: what was asked for, by option or by default.
    depth: Depth
    #: Where it was found out: versions of lora-doctor, Python, the platform and ``packages``.
    environment: Mapping[str, Any]
    #: What was found, with the recipe as it was given.
    findings: tuple[Finding, ...] = ()
    #: Codes of the rules that found nothing.
    passed: tuple[str, ...] = ()
    #: Rules that could not be asked.
    skipped: tuple[Skipped, ...] = ()
    #: The pieces of evidence, in the order in which they were gathered.
    gathered: tuple[Gathered, ...] = ()
    #: The model at full size; ``None`` when it was not built.
    structure: Structure | None = None
    #: The training contract with the recipe as it was given; ``None`` when it was not run.
    before: Verification | None = None
    #: The training contract with the fixed recipe; ``None`` when it was not run.
    after: Verification | None = None
    #: What is still found after the fixes; ``None`` when no fix was tried.
    remaining: tuple[Finding, ...] | None = None
    #: The fixes that lead to ``fixed_recipe``, in order.
    applied: tuple[AppliedFix, ...] = ()
    #: The recipe after the fixes in ``applied``.
    fixed_recipe: Recipe | None = None
    #: The change of the recipe file as a unified diff; empty when there is none.
    recipe_diff: str = ""
    #: The files that ``fix --apply`` wrote, and that hold the fixes in ``applied`` now; empty where
    #: nothing was written.
    written_to: tuple[str, ...] = ()
    #: What the user types next; may be empty.
    next_command: str = ""
    #: Why the question could not be answered, or not as deep as was asked for: exit code 2 where no
    #: finding gives 1. ``None`` where ``depth`` was reached.
    undetermined: str | None = None
    #: The deepest depth that was reached; ``None`` when there was nothing to look at.
    reached: Depth | None = None
    #: The limit of lora-doctor that kept the question open; ``None`` when none did.
    limit: LimitReached | None = None
    #: What the recipe and its alternatives take on a GPU; ``None`` when nobody asked for it or it
    #: could not be made.
    memory_plan: MemoryPlan | None = None
    #: The user's own command, run; ``None`` where none was.
    dry_run: DryRun | None = None
    #: Which tokens of the training data the loss sees; ``None`` when there were no rows to look at.
    supervision: Supervision | None = None
    #: What all of it took, in seconds.
    seconds: float = 0.0
    #: Remarks on the run.
    notes: tuple[Note, ...] = ()
    #: Which of the findings a baseline or an ignore has accepted.
    accepted: tuple[Accepted, ...] = ()
    #: What is asserted of numbers, each with its number.
    budgets: tuple[BudgetCheck, ...] = ()

    @property
    def skipped_with_remedy(self) -> tuple[Skipped, ...]:
        """Rules of this depth that could have been asked, had the user changed something: what
        ``--strict`` counts."""
        return tuple(item for item in self.skipped if item.remedy is not None)

    def not_accepted(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """Those of these findings that no baseline and no ignore has accepted."""
        accepted = {item.fingerprint for item in self.accepted}
        return tuple(one for name, one in with_fingerprints(findings) if name not in accepted)

    @property
    def verdict(self) -> Verdict:
        """``healthy``: the training contract was executed and passed for the whole recipe (names
        that match nothing and are no loss aside), and no rule found an error or a warning.
        ``findings``: a rule did. ``undetermined``: neither. Where the field ``undetermined`` is
        ``None`` then, nothing was found at ``depth``, which executes no contract: exit code 0."""
        if any(finding.severity != "info" for finding in self.findings):
            return "findings"
        held = self._contract_held() and self.undetermined is None
        return "healthy" if held else "undetermined"

    def _contract_held(self) -> bool:
        """Whether the contract passed. Names that match nothing fail it as well; where a finding
        says that they are no loss (names for several architectures), all that is left passed."""
        run = self.before
        if run is None or run.as_answer().outcome == "undetermined":
            return False
        if run.outcome == "passed":
            return True
        no_loss = {check for finding in self.findings for check in finding.explains}
        only_names = all(
            check.problems == ("unmatched",) and check.name in no_loss
            for check in run.failed_checks
        )
        return only_names and bool(run.failed_checks) and not any(n.is_unproven for n in run.notes)

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
        """The machine-readable diagnosis; valid against ``schema/diagnosis-2.json``."""
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
            "reached": self.reached,
            "verdict": self.verdict,
            "undetermined": self.undetermined,
            "limit": asdict(self.limit) if self.limit else None,
            "findings": [finding.to_json() for finding in self.findings],
            "remaining": (
                None if self.remaining is None else [item.to_json() for item in self.remaining]
            ),
            "passed": list(self.passed),
            "skipped": [vars(item) for item in self.skipped],
            "applied": [{"rule": item.rule, **item.fix.to_json()} for item in self.applied],
            "fixed_recipe": self.fixed_recipe.to_json() if self.fixed_recipe else None,
            "recipe_diff": self.recipe_diff,
            "written_to": list(self.written_to),
            "verification": {
                "before": self.before.to_json() if self.before else None,
                "after": self.after.to_json() if self.after else None,
            },
            "structure": structure.to_json() if structure else None,
            "memory_plan": self.memory_plan.to_json() if self.memory_plan else None,
            "dry_run": self.dry_run.to_json() if self.dry_run else None,
            "supervision": self.supervision.to_json() if self.supervision else None,
            "next_command": self.next_command,
            "notes": [asdict(note) for note in self.notes],
            "accepted": [vars(item) for item in self.accepted],
            "budgets": [asdict(item) for item in self.budgets],
            "timings": {
                "total_seconds": round(self.seconds, 3),
                "evidence": [vars(item) for item in self.gathered],
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Diagnosis:
        """A diagnosis out of what ``to_json`` gave; :func:`read_diagnosis` reads stored ones.

        Raises:
            KeyError, TypeError, ValueError: it is not what ``to_json`` gives.
        """
        runs, timings = data["verification"], data["timings"]
        applied = [{"rule": item["rule"], "fix": item} for item in data["applied"]]
        return from_json(
            cls,
            {
                **data,
                "applied": applied,
                "before": runs["before"],
                "after": runs["after"],
                "seconds": timings["total_seconds"],
                "gathered": timings["evidence"],
            },
        )


def patches_of(diagnosis: Diagnosis) -> tuple[Patch, ...]:
    """The patches among the applied fixes."""
    return tuple(item.fix.patch for item in diagnosis.applied if item.fix.patch)
