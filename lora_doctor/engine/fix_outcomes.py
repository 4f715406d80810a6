"""How a fix came out: the run with it, held against the run without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from lora_doctor.engine.examine import Examination
from lora_doctor.errors import InputError
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.finding import Finding
from lora_doctor.results.fix import Execution, Fix, Outcome
from lora_doctor.results.verification import Verification


def contract_words(run: Verification) -> str:
    """``12 of 12 checks passed``."""
    ran = sum(check.status != "skipped" for check in run.checks)
    return f"{ran - len(run.failed_checks)} of {ran} checks passed"


def outcome_of(
    first: Examination,
    after: Examination,
    finding: Finding,
    fallbacks: set[str],
    beside: Sequence[str],
    fix: Fix,
) -> Execution:
    """How a fix of this finding came out in a run with it."""
    if is_of_text(fix, first.case.recipe):  # the contract runs the recipe, and not these lines
        if _is_left(finding, first, after):
            return Execution("failed", "the finding is still there", "static", tuple(beside))
        return Execution("removed", "the finding is gone", "static", tuple(beside))
    run = after.answer.before
    in_part = run is not None and run.obstacle == "not-proven" and not run.failed_checks
    undecided = run is None or (run.outcome == "undetermined" and not in_part)
    if run is None or undecided:
        reason = (run.reason if run else "") or after.answer.open or "no verdict"
        return Execution(detail=f"the run with it came to no verdict: {reason}")
    depth = first.case.settings.depth
    failed = [check.name for check in run.failed_checks]
    held = contract_words(run)
    if _is_left(finding, first, after):
        return Execution("failed", f"the finding is still there; {held}", depth, tuple(beside))
    if in_part:
        return Execution("removed", f"{held}, but {run.reason}", depth, tuple(beside))
    if not failed:
        return Execution("passed", held, depth, tuple(beside))
    outcome: Outcome = "removed" if _is_further(first, after, fallbacks) else "failed"
    detail = f"{held}, {', '.join(failed)} failed{_accounted_for(after, failed, fallbacks)}"
    return Execution(outcome, detail, depth, tuple(beside))


def with_place(executed: Execution, fix: Fix, recipe: Recipe) -> Execution:
    """How a fix came out, with what of it does not go into the file of the recipe."""
    from lora_doctor.recipe.files.read_write import without_place

    outside = without_place(recipe, fix.edits)
    if not outside or recipe.file is None:
        return executed
    told = f"{', '.join(outside)}: in the prescription, {recipe.file.name} has no place for it"
    return replace(executed, detail=f"{executed.detail}; {told}")


def _is_further(first: Examination, after: Examination, fallbacks: set[str]) -> bool:
    """Whether a run that failed came further than the one without the fix, or fails in nothing but
    what other findings account for; what worked works still."""
    assert after.answer.before is not None
    failed = {check.name for check in after.answer.before.failed_checks}
    worked, works = _passed(first), _passed(after)
    net = [one for one in after.answers.findings if one.rule in fallbacks]
    # Rules that nobody asked for account for failures as well.
    accounted = after.answers.explained - {name for one in net for name in one.explains}
    return not worked & failed and (failed <= accounted or len(works) > len(worked))


def _passed(run: Examination) -> set[str]:
    contract = run.answer.before
    checks = contract.checks if contract else ()
    return {check.name for check in checks if check.status == "passed"}


def _accounted_for(after: Examination, failed: Sequence[str], fallbacks: set[str]) -> str:
    """Which findings tell of these failures."""
    rules = {one.rule for one in after.answers.findings
             if one.rule not in fallbacks and set(failed).intersection(one.explains)}  # fmt: skip
    return f", see {', '.join(sorted(rules))}" if rules else ""


def _is_left(finding: Finding, first: Examination, after: Examination) -> bool:
    """Whether the same rule still finds it there, or finds as much in other places."""
    rule = [Counter(_place(one) for one in run.answers.findings if one.rule == finding.rule)
            for run in (first, after)]  # fmt: skip
    place = _place(finding)
    return rule[1][place] >= rule[0][place] or rule[1].total() >= rule[0].total()


def _place(finding: Finding) -> tuple[str, str]:
    return finding.location.kind, str(finding.location)


def is_of_text(fix: Fix, recipe: Recipe) -> bool:
    """Whether a fix changes the text of a program or set-up and no key of the recipe: what it does
    is the program's or the framework's business, and a run of the recipe shows nothing of it."""
    if fix.patch is not None or not (fix.rewrites or fix.edits):
        return False
    try:
        return recipe.edit(fix.edits).values == recipe.values
    except InputError:
        return False
