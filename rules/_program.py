"""Shared by the rules that read the order of calls in a training script or notebook."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lora_doctor.rule_api import (
    Case,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Slip,
)

PROOF = Proof("read", "the calls were followed in the order of the script")


def slips(
    rule: Rule, case: Case, found: Iterable[Slip], message: str, other: str, title: str
) -> Iterator[Finding]:
    """A finding for each. ``message`` has ``{code}`` and ``{other}``; ``other``: what the other
    call is, for the evidence; ``title``: what to do."""
    for slip in found:
        yield rule.finding(
            "error",
            message.format(code=slip.code, other=slip.other_place.inside),
            location=Location("file", slip.place.file, slip.place.line),
            evidence=(
                Measurement("the call", slip.code, str(slip.place)),
                Measurement(other, slip.other_code, str(slip.other_place)),
            ),
            proof=PROOF,
            fixes=(
                Fix(title, "safe", rewrites=slip.rewrites)
                if slip.rewrites
                else Fix(title, "manual"),
            ),
        )
