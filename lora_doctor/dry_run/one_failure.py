"""One failure, one finding: what the command raised is told with the rule that knows why.

Without such a rule the finding of LD002 stays; a rule of last resort that only repeats what the
command raised (the training contract raised the same) is left out then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lora_doctor.engine.rule import Rule
from lora_doctor.engine.symptoms import find_by_message
from lora_doctor.errors import LimitError
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.dry_run import ScriptError
from lora_doctor.results.finding import Finding, Location, Measurement

#: The rule that reports what the command raised.
FAILURE = "LD002"
#: What that rule calls the rules with like symptoms: of no use where one of them is told.
SIMILAR = "rules with a similar message"
#: Characters of a message by which two are held to be the same; ends differ by what is appended.
_SAME = 160
#: Shorter messages say too little to be the same.
_LEAST = 8


def one_failure(
    diagnosis: Diagnosis, error: ScriptError | None, rules: Iterable[type[Rule]]
) -> tuple[Finding, ...]:
    """The findings, of which at most one is about what the command raised; it comes first."""
    findings = diagnosis.findings
    failure = next((one for one in findings if one.rule == FAILURE), None)
    if error is None or failure is None:
        return findings
    kinds = {rule.code: rule for rule in rules}
    fallbacks = {code for code, rule in kinds.items() if rule.is_fallback}
    others = [
        one
        for one in findings
        if one is not failure and not (one.rule in fallbacks and _repeats(one, error))
    ]
    known = [one for one in others if one.severity == "error" and one.rule not in fallbacks]
    cause = _cause(known, error, diagnosis, list(kinds.values()))
    if cause is None:
        return (failure, *others)
    return (_with_failure(cause, failure), *(one for one in others if one is not cause))


def _cause(
    findings: Sequence[Finding],
    error: ScriptError,
    diagnosis: Diagnosis,
    rules: Sequence[type[Rule]],
) -> Finding | None:
    """The finding whose rule knows why the command raised this; ``None`` where none does.

    The surest first: one whose evidence has the message; one that accounts for a check of the
    training contract which raised the same; one whose rule has it among its symptoms.
    """
    for one in findings:
        if _repeats(one, error):
            return one
    run = diagnosis.before
    failed = {
        check.name for check in (run.failed_checks if run else ()) if _same(check.detail, error)
    }
    for one in findings:
        if failed.intersection(one.explains):
            return one
    for code in _with_symptom(error, rules):
        of_rule = [one for one in findings if one.rule == code]
        if of_rule:
            return next((one for one in of_rule if _is_named(one, error)), of_rule[0])
    return None


def _is_named(finding: Finding, error: ScriptError) -> bool:
    """Whether the message quotes what this finding, of several of its rule, is about."""
    return any(
        isinstance(measure.value, str) and f"'{measure.value}'" in error.message
        for measure in finding.evidence
    )


def _with_symptom(error: ScriptError, rules: Sequence[type[Rule]]) -> list[str]:
    """Codes of the rules that know the traceback, the likeliest first."""
    text = error.traceback or f"{error.type}: {error.message}"
    try:
        return [match.rule.code for match in find_by_message(text, rules)]
    except LimitError:
        return []


def _repeats(finding: Finding, error: ScriptError) -> bool:
    return any(_same(str(measure.value), error) for measure in finding.evidence)


def _same(text: str, error: ScriptError) -> bool:
    """Whether a text has the message of an exception in it."""
    message = " ".join(error.message.split())[:_SAME]
    return len(message) >= _LEAST and message in " ".join(text.split())


def _with_failure(cause: Finding, failure: Finding) -> Finding:
    """The finding of the cause, at the line of the user's that failed."""
    keeps = cause.location.kind == "file" and cause.location.line is not None
    location: Location = cause.location
    if failure.location.kind == "file" and not keeps:
        location = failure.location
    about = [] if location is cause.location else [_about(cause.location)]
    raised = [one for one in failure.evidence if one.what != SIMILAR]
    shown = {(one.what, str(one.value)) for one in raised}
    own = (one for one in cause.evidence if (one.what, str(one.value)) not in shown)
    return replace(cause, location=location, proof=failure.proof, evidence=(*raised, *about, *own))


def _about(location: Location) -> Measurement:
    what = {"recipe": "key at fault", "environment": "what it is about"}
    return Measurement(
        what.get(location.kind, f"{location.kind} at fault"), str(location), "the rule"
    )
