"""``gitlab``: GitLab's code quality report, for ``artifacts:reports:codequality``.

See "Code Quality report format" in GitLab's documentation. Every issue needs a file there: a
finding that is in none is reported for ``.``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING

from lora_doctor.reports._records import records
from lora_doctor.reports._text import visible

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

NAME = "gitlab"
#: GitLab knows info, minor, major, critical and blocker.
_SEVERITIES = {"error": "critical", "warning": "major", "info": "info"}


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """A JSON list, empty where nothing was found."""
    issues = [
        {
            "description": record.message,
            "check_name": record.rule,
            "fingerprint": record.fingerprint,
            "severity": _SEVERITIES[record.level],
            "location": {"path": record.file or ".", "lines": {"begin": record.line or 1}},
        }
        for record in records(diagnosis)
    ]
    return json.dumps(issues, indent=2) + "\n"


def join(texts: Mapping[str, str]) -> str:
    """One list. GitLab shows one issue of a fingerprint, so that the set-up is part of it."""
    issues = [
        {
            **issue,
            "description": f"{visible(name)}: {issue['description']}",
            "fingerprint": sha256(f"{name}\0{issue['fingerprint']}".encode()).hexdigest()[:32],
        }
        for name, text in texts.items()
        for issue in json.loads(text)
    ]
    return json.dumps(issues, indent=2) + "\n"
