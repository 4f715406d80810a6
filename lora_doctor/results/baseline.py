"""What two diagnoses of one set-up have in common, and what a team has accepted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from lora_doctor.results.diagnosis import Accepted, Diagnosis
from lora_doctor.results.finding import Finding
from lora_doctor.results.fingerprints import with_fingerprints
from lora_doctor.results.note import Note


@dataclass(frozen=True)
class Comparison:
    """Two diagnoses, the later against the earlier."""

    #: Found now and not before.
    new: tuple[Finding, ...]
    #: Found before and not now.
    gone: tuple[Finding, ...]
    #: Found both times with another severity or message: before and now.
    changed: tuple[tuple[Finding, Finding], ...]
    #: Found both times, as now.
    kept: tuple[Finding, ...]
    #: Packages, and lora-doctor itself, of which the version moved: before and now, ``None`` where
    #: it was not installed.
    moved: dict[str, tuple[str | None, str | None]]

    def to_json(self) -> dict[str, Any]:
        return {
            "new": [finding.to_json() for finding in self.new],
            "gone": [finding.to_json() for finding in self.gone],
            "changed": [[one.to_json(), other.to_json()] for one, other in self.changed],
            "kept": [finding.to_json() for finding in self.kept],
            "moved": {name: list(versions) for name, versions in self.moved.items()},
        }


def compare(before: Diagnosis, now: Diagnosis) -> Comparison:
    """Findings are the same when their fingerprints are."""
    earlier, later = _named(before.findings), _named(now.findings)
    both = [(earlier[name], later[name]) for name in later if name in earlier]
    return Comparison(
        new=tuple(later[name] for name in later if name not in earlier),
        gone=tuple(earlier[name] for name in earlier if name not in later),
        changed=tuple(pair for pair in both if _told(pair[0]) != _told(pair[1])),
        kept=tuple(now_ for _, now_ in both),
        moved=_moved(_versions(before), _versions(now)),
    )


def with_baseline(diagnosis: Diagnosis, baseline: Diagnosis, file: str) -> Diagnosis:
    """The diagnosis with what the baseline has accepted, and a note for what is gone since."""
    found = compare(baseline, diagnosis)
    known = {id(finding) for finding in found.kept}
    accepted = tuple(
        Accepted(name, "baseline", file)
        for name, finding in _named(diagnosis.findings).items()
        if id(finding) in known
    )
    gone = tuple(
        Note("baseline", f"gone since {file}: {finding.rule} {finding.message}")
        for finding in found.gone
    )
    return replace(
        diagnosis,
        accepted=(*diagnosis.accepted, *accepted),
        notes=(*diagnosis.notes, *gone),
    )


def _named(findings: Iterable[Finding]) -> dict[str, Finding]:
    return dict(with_fingerprints(tuple(findings)))


def _told(finding: Finding) -> tuple[str, str]:
    return finding.severity, finding.message


def _versions(diagnosis: Diagnosis) -> dict[str, str | None]:
    environment = diagnosis.environment
    own = {name: environment.get(name) for name in ("lora_doctor", "python")}
    return {**own, **environment.get("packages", {})}


def _moved(
    before: dict[str, str | None], now: dict[str, str | None]
) -> dict[str, tuple[str | None, str | None]]:
    names = dict.fromkeys((*before, *now))
    pairs = {name: (before.get(name), now.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
