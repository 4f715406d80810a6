"""A finding: one occurrence of a failure mode, with what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.results.fix import Fix

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
ProofKind = Literal["executed", "measured", "inferred"]


@dataclass(frozen=True)
class Location:
    """Where it is: a module path of the model, a key of the recipe, or a line of a file."""

    kind: Literal["module", "recipe", "file", "environment"]
    path: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, "line": self.line}


@dataclass(frozen=True)
class Measurement:
    """One line of evidence: what was measured, its value, and where it came from."""

    what: str
    value: Any
    source: str

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "value": self.value, "source": self.source}


@dataclass(frozen=True)
class Proof:
    """How sure it is. ``executed``: the failure was seen; ``measured``: read off the real
    classes; ``inferred``: concluded from files, so the wording says "may"."""

    kind: ProofKind
    detail: str

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "detail": self.detail}


@dataclass(frozen=True)
class Finding:
    """One occurrence of a rule.

    ``severity``: ``error`` the run fails or learns nothing; ``warning`` it trains, but not what
    was meant or at risk; ``info``. ``explains`` names the checks of the training contract whose
    failure this finding accounts for; a failed check that nothing explains becomes LD001.
    """

    rule: str
    name: str
    severity: Severity
    message: str
    location: Location
    evidence: tuple[Measurement, ...]
    proof: Proof
    fixes: tuple[Fix, ...] = ()
    explains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.evidence:
            raise ValueError(f"{self.rule}: a finding without evidence is not a finding")

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
        }


def first_fix(finding: Finding, unsafe: bool = False) -> Fix | None:
    """The fix that would be applied: the first safe one, or with ``unsafe`` the first that is."""
    for fix in finding.fixes:
        if fix.safety == "safe" or (unsafe and fix.safety == "unsafe"):
            return fix
    return None
