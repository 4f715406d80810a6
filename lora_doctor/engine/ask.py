"""Ask one rule: whatever it does is its own affair, and ends neither the run nor the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_doctor.engine.case import Case
from lora_doctor.engine.rule import Rule
from lora_doctor.errors import LoraDoctorError
from lora_doctor.recipe.edit import Edit, Patch
from lora_doctor.results.finding import SEVERITIES, Finding, Location, Measurement, Proof
from lora_doctor.results.fix import Fix
from lora_doctor.text import one_line


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
        raise BrokenRuleError(
            f"the rule itself failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    return found


def _check(finding: Any) -> None:
    """Raises TypeError for anything but a finding whose parts are what their types say."""
    _needs(isinstance(finding, Finding), "yielded", finding, "a Finding")
    _needs(finding.severity in SEVERITIES, "severity", finding.severity, ", ".join(SEVERITIES))
    for name in ("rule", "name", "message"):
        _needs(isinstance(getattr(finding, name), str), name, getattr(finding, name), "a text")
    _needs(_is_location(finding.location), "location", finding.location, "a Location")
    proof = finding.proof
    _needs(
        isinstance(proof, Proof) and isinstance(proof.kind, str) and isinstance(proof.detail, str),
        "proof", proof, "a Proof",
    )  # fmt: skip
    _all(finding.evidence, "evidence", _is_measurement, "Measurements")
    _all(finding.fixes, "fixes", _is_fix, "Fixes")
    _all(finding.explains, "explains", lambda item: isinstance(item, str), "names of checks")


def _is_location(location: Any) -> bool:
    return (
        isinstance(location, Location)
        and isinstance(location.kind, str)
        and isinstance(location.path, str)
        and isinstance(location.line, (int, type(None)))
    )


def _is_measurement(item: Any) -> bool:
    return (
        isinstance(item, Measurement)
        and isinstance(item.what, str)
        and isinstance(item.source, str)
    )


def _is_fix(item: Any) -> bool:
    return (
        isinstance(item, Fix)
        and isinstance(item.title, str)
        and item.safety in ("safe", "unsafe", "manual")
        and isinstance(item.edits, tuple)
        and all(isinstance(edit, Edit) and isinstance(edit.key, str) for edit in item.edits)
        and isinstance(item.patch, (Patch, type(None)))
    )


def _all(items: Any, name: str, fits: Callable[[Any], bool], wanted: str) -> None:
    _needs(isinstance(items, tuple), name, items, f"a tuple of {wanted}")
    for item in items:
        _needs(fits(item), name, item, f"a tuple of {wanted}")


def _needs(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise TypeError(f"{name}: a {type(value).__name__}, not {wanted}")
