"""Names of findings that outlive a change of the file, of the versions and of what was measured."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from lora_doctor.results.finding import Finding
from lora_doctor.results.secrets import hidden


def fingerprints(findings: Iterable[Finding]) -> list[str]:
    """One for each finding, 32 hexadecimal digits, no two alike.

    Made of the rule and of what the finding is about (the key of the recipe, the module, the file),
    never of a line, a version or a number; findings that share these are counted. A stored result
    has no secrets, and its findings the same names: a path is taken without them.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    names = []
    for finding in findings:
        about = (finding.rule, finding.location.kind, hidden(finding.location.path))
        seen[about] += 1
        text = "\0".join((*about, str(seen[about])))
        names.append(hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32])
    return names


def with_fingerprints(findings: Sequence[Finding]) -> list[tuple[str, Finding]]:
    """Each finding behind its fingerprint, in the given order."""
    return list(zip(fingerprints(findings), findings, strict=True))
