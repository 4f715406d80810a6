"""Ask one rule: whatever it does is its own affair, and ends neither the run nor the others."""

from __future__ import annotations

from typing import Any

from lora_doctor.engine.case import Case
from lora_doctor.engine.rule import Rule
from lora_doctor.errors import LoraDoctorError
from lora_doctor.results.finding import Finding
from lora_doctor.results.from_json import mismatch
from lora_doctor.text import one_line, raised_at


class BrokenRuleError(Exception):
    """The rule itself failed; the message is the reason in one line."""


def ask(rule: type[Rule], case: Case) -> list[Finding]:
    """The findings of a rule, each checked to be one.

    Raises:
        LoraDoctorError: evidence that it needs cannot be had, or the input is at fault.
        BrokenRuleError: it raised something else, or yielded what is no finding.
        KeyboardInterrupt: of the user, or a signal that ends the run.
    """
    try:
        found = list(rule().check(case))
        for finding in found:
            _check(finding)
    except (LoraDoctorError, KeyboardInterrupt):
        raise
    except BaseException as error:
        at = raised_at(error)
        raise BrokenRuleError(
            f"the rule itself failed: {type(error).__name__}: {one_line(error)}"
            f"{f' ({at})' if at else ''}"
        ) from error
    return found


def _check(finding: Any) -> None:
    """Raises TypeError for anything but a finding whose parts are what their types say."""
    if not isinstance(finding, Finding):
        raise TypeError(f"yielded: a {type(finding).__name__}, not a Finding")
    wrong = mismatch(finding)
    if wrong is not None:
        raise TypeError(f"{wrong}: is not of the type that this field of a Finding has")
