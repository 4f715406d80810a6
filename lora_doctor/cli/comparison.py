"""``lora-doctor diff``: two stored results, held against each other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_doctor.results.finding import SEVERITIES
from lora_doctor.text import visible

if TYPE_CHECKING:
    from lora_doctor.results.baseline import Comparison
    from lora_doctor.results.finding import Finding


def as_json(found: Comparison) -> str:
    """Strict JSON in ASCII; numbers that it has no word for are texts, as in a stored result."""
    from lora_doctor.reports._text import plain

    return json.dumps(plain(found.to_json()), indent=2, allow_nan=False) + "\n"


def as_text(found: Comparison) -> str:
    """A line for each difference; one that says so where there is none."""
    lines = [f"new      {_line(finding)}" for finding in found.new]
    lines += [f"gone     {_line(finding)}" for finding in found.gone]
    for before, now in found.changed:
        lines += [f"changed  {_line(before)}", f"     to  {_line(now)}"]
    for name, (earlier, later) in found.moved.items():
        lines.append(f"version  {visible(name)} {_version(earlier)} -> {_version(later)}")
    kept = len(found.kept)
    if not lines:
        lines.append("no difference")
    if kept:
        lines.append(f"{kept} finding{'s' * (kept != 1)} found both times")
    return "".join(f"{line}\n" for line in lines)


def fails(found: Comparison, fail_on: str) -> bool:
    """Whether something is new, or is worse than it was, at or above this severity."""
    if fail_on == "never":
        return False
    line = SEVERITIES.index("error" if fail_on == "error" else "warning")
    worse = [now for before, now in found.changed if _rank(now) < _rank(before)]
    return any(_rank(finding) <= line for finding in (*found.new, *worse))


def _rank(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)


def _line(finding: Finding) -> str:
    place = visible(finding.location, 300)
    return f"{visible(finding.rule)} {finding.severity} at {place}: {visible(finding.message, 600)}"


def _version(version: str | None) -> str:
    return visible(version) if version else "not installed"
