"""``gitlab``: GitLab's code quality report, for ``artifacts:reports:codequality``.

See "Code Quality report format" in GitLab's documentation. Every issue needs a file there: a
finding that is in none is reported for ``.``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_doctor.reports._records import records

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
