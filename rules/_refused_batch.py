"""What rules about a batch that could not be made share: the exception that ended a dry run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Finding, Fix, Location, Measurement, Proof, Rule

if TYPE_CHECKING:
    from lora_doctor.rule_api import Case, ScriptError

_SOURCE = "the user's command, dry-run"


def refused(case: Case, messages: Iterable[str]) -> ScriptError | None:
    """What ended the command, where its message has one of these expressions in it."""
    error = case.dry_run.error
    if error is None or not any(re.search(one, error.message) for one in messages):
        return None
    return error


def finding(rule: Rule, error: ScriptError, message: str, part: str, fix: str) -> Finding:
    """At the user's line; where none is known, ``part`` of the set-up, such as ``tokenizer``."""
    return rule.finding(
        "error",
        message,
        location=(
            Location("file", error.file, error.line)
            if error.file
            else Location("environment", part)
        ),
        evidence=(
            Measurement("exception", f"{error.type}: {error.message}", _SOURCE),
            Measurement("raised in", error.raised_in or "unknown", "its traceback"),
        ),
        proof=Proof("executed", _SOURCE),
        fixes=(Fix(fix, "manual"),),
    )
