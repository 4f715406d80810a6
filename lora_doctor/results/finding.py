"""A finding: one occurrence of a failure mode, with what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.results import display
from lora_doctor.results.fix import Fix

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
ProofKind = Literal["executed", "measured", "read", "inferred"]


@dataclass(frozen=True)
class Location:
    """Where a finding is."""

    #: What ``path`` means: a module path of the model, a key of the recipe, a file, or something of
    #: the environment.
    kind: Literal["module", "recipe", "file", "environment"]
    #: Module path, recipe key, file, or what of the environment.
    path: str
    #: Line of the file, from 1.
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, "line": self.line}


@dataclass(frozen=True)
class Measurement:
    """One line of evidence."""

    #: What was measured.
    what: str
    #: What came out: a number (``what`` or ``source`` names its unit), a string, or a list or
    #: mapping of these.
    value: Any
    #: Where it comes from.
    source: str

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "value": self.value, "source": self.source}


@dataclass(frozen=True)
class Proof:
    """How sure a finding is."""

    #: ``executed``: the failure was seen. ``measured``: measured on the full-size class, or on what
    #: a run left behind. ``read``: read from files. ``inferred``: concluded from files, so the
    #: wording says "may".
    kind: ProofKind
    #: What was executed, measured or read.
    detail: str

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "detail": self.detail}


@dataclass(frozen=True)
class Finding:
    """One occurrence of a failure mode."""

    #: Code of the rule, such as ``LD101``.
    rule: str
    #: Name of the rule.
    name: str
    #: ``error``: the run fails or learns nothing. ``warning``: it would train, but not as
    #: intended, or at risk. ``info``: worth knowing.
    severity: Severity
    #: What is wrong, in one line.
    message: str
    #: Where it is.
    location: Location
    #: What it rests on; never empty.
    evidence: tuple[Measurement, ...]
    #: How sure it is.
    proof: Proof
    #: What removes it; the first one that is allowed is the one that is applied.
    fixes: tuple[Fix, ...] = ()
    #: Names of the checks of the training contract whose failure it accounts for; a failed check
    #: that nothing explains becomes LD001.
    explains: tuple[str, ...] = ()
    #: Numbers of rows of the training data that show it, where it is about those.
    rows: tuple[int, ...] = ()
    #: Where the user's file says what it is about: ``train.py:31``; empty where that is not known.
    written: str = ""

    def __post_init__(self) -> None:
        if not self.evidence:
            raise ValueError(f"{self.rule}: a finding without evidence is not a finding")

    def __str__(self) -> str:
        """Rule, severity, place and message on one line."""
        return display.one_line((self.rule, self.severity, f"at {self.location}:", self.message))

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "name": self.name,
            "severity": self.severity,
            "message": self.message,
            "location": self.location.to_json(),
            "evidence": [measure.to_json() for measure in self.evidence],
            "proof": self.proof.to_json(),
            "fixes": [fix.to_json() for fix in self.fixes],
            "explains": list(self.explains),
            "rows": list(self.rows),
            "written": self.written,
        }


def first_fix(finding: Finding, unsafe: bool = False) -> Fix | None:
    """The fix that would be applied: the first that leaves the result of training as it is and was
    seen to remove the finding; with ``unsafe`` the first that was not seen to be of no use."""
    return next((fix for fix in finding.fixes if is_applied(fix, unsafe)), None)


def is_applied(fix: Fix, unsafe: bool = False) -> bool:
    """Whether ``fix`` takes this one, with or without ``--unsafe-fixes``."""
    if unsafe:
        return fix.safety != "manual" and fix.executed.outcome != "failed"
    removes = fix.executed.outcome in ("passed", "removed")
    return fix.safety == "safe" or (fix.safety == "unproven" and removes)
