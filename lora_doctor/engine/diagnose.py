"""The engine: which rules, in which order, each one isolated; then the fixes, and the proof.

The engine knows rules only by their interface, and rules know neither it nor each other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from lora_doctor.engine.case import Case
from lora_doctor.engine.registry import RuleSelection
from lora_doctor.engine.rule import Rule
from lora_doctor.engine.symptoms import find_by_message
from lora_doctor.errors import EvidenceError, LoraDoctorError
from lora_doctor.results.depth import DEPTHS
from lora_doctor.results.diagnosis import AppliedFix, Diagnosis, Skipped
from lora_doctor.results.finding import SEVERITIES, Finding, first_fix
from lora_doctor.results.note import Note
from lora_doctor.results.verification import Verification

#: A fix may uncover the next finding; more rounds than this would be going in circles.
MAX_ROUNDS = 5


def diagnose(
    case: Case, rules: Sequence[type[Rule]], selection: RuleSelection | None = None
) -> Diagnosis:
    """Ask every selected rule, cheapest evidence first, and run the training contract.

    A rule whose evidence cannot be had is skipped with the reason; one that crashes is skipped
    with its exception and leaves the diagnosis undetermined.

    Raises:
        InputError: the model or the recipe cannot be read.
    """
    start = time.perf_counter()
    selection = selection or RuleSelection()
    read_input(case)
    case.rules_with_symptom = lambda text: [
        f"{match.rule.code} {match.rule.name}" for match in find_by_message(text, rules)
    ]
    case.refine_proposal()
    findings: list[Finding] = []
    passed: list[str] = []
    skipped: list[Skipped] = []
    crashed: list[str] = []
    order = sorted(rules, key=lambda rule: (rule.is_fallback, DEPTHS.index(rule.depth), rule.code))
    nets = any(rule.is_fallback and rule in selection for rule in rules)
    for rule in order:
        if rule not in selection:
            # What it knows is not reported, but it is not unexplained either.
            if nets and not rule.is_fallback and case.reaches(rule.depth):
                case.explained.update(_explained_by(rule, case))
            continue
        if not case.reaches(rule.depth):
            skipped.append(Skipped(rule.code, rule.name, case.too_shallow(rule.depth)))
            continue
        try:
            found = list(rule().check(case))
        except EvidenceError as error:
            skipped.append(Skipped(rule.code, rule.name, str(error)))
            continue
        except LoraDoctorError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - one broken rule is not all
            crashed.append(rule.code)
            reason = f"the rule itself failed: {type(error).__name__}: {error}"
            skipped.append(Skipped(rule.code, rule.name, " ".join(reason.split())))
            continue
        findings += found
        for finding in found:
            case.explained.update(finding.explains)
        if not found:
            passed.append(rule.code)
    before, undetermined = _proof(case, crashed)
    if case.settings.memory:
        case.has("memory_plan")
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.rule))
    return Diagnosis(
        model=case.source,
        recipe=case.recipe,
        depth=case.settings.depth,
        environment=_environment(case),
        findings=tuple(findings),
        passed=tuple(passed),
        skipped=tuple(skipped),
        gathered=tuple(case.gathered),
        structure=case.__dict__.get("structure"),
        before=before,
        undetermined=undetermined,
        memory_plan=case.__dict__.get("memory_plan"),
        notes=_notes(case, before),
        seconds=time.perf_counter() - start,
    )


def _notes(case: Case, before: Verification | None) -> tuple[Note, ...]:
    """What was decided unasked on the way to the recipe, and what nothing was run on or in."""
    structure = case.__dict__.get("structure")
    decided = structure.notes if structure is not None else ()
    told = before.notes if before is not None else ()
    return (
        *decided,
        *(note for note in told if note.is_gap),
    )


def _explained_by(rule: type[Rule], case: Case) -> set[str]:
    """Checks of the training contract that a rule which nobody asked for accounts for."""
    try:
        return {name for finding in rule().check(case) for name in finding.explains}
    except Exception:  # noqa: BLE001 - nobody asked for it: without evidence, or broken, it has no say
        return set()


def diagnose_and_fix(
    case: Case,
    rules: Sequence[type[Rule]],
    selection: RuleSelection | None = None,
    *,
    unsafe: bool = False,
) -> Diagnosis:
    """Diagnose, apply the first allowed fix of each finding, and diagnose again until nothing
    changes. Nothing is written; ``after`` is the contract executed on the fixed recipe."""
    start = time.perf_counter()
    first = current = diagnose(case, rules, selection)
    applied: list[AppliedFix] = []
    recipe, patches = first.recipe, case.patches
    for _ in range(MAX_ROUNDS):
        chosen = _choose(current.findings, unsafe, applied)
        if not chosen:
            break
        for item in chosen:
            recipe = recipe.edit(item.fix.edits)
            if item.fix.patch and item.fix.patch not in patches:
                patches = (*patches, item.fix.patch)
        applied += chosen
        case = case.again(recipe, patches)
        current = diagnose(case, rules, selection)
        recipe = current.recipe
    if not applied:
        return replace(first, remaining=first.findings, seconds=time.perf_counter() - start)
    return replace(
        first,
        applied=tuple(applied),
        fixed_recipe=recipe,
        after=current.before,
        remaining=current.findings,
        # What the fixes were for may have kept the first run from an answer.
        undetermined=current.undetermined,
        seconds=time.perf_counter() - start,
    )


def _choose(
    findings: Sequence[Finding], unsafe: bool, applied: Sequence[AppliedFix]
) -> list[AppliedFix]:
    """One fix per finding, never one that was applied before, never two on one key at a time."""
    done = {(item.rule, item.fix.title) for item in applied}
    touched: set[str] = set()
    chosen = []
    for finding in findings:
        fix = first_fix(finding, unsafe)
        keys = {edit.key for edit in fix.edits} if fix else set()
        if fix is None or (finding.rule, fix.title) in done or keys & touched:
            continue
        touched |= keys
        chosen.append(AppliedFix(finding.rule, fix))
    return chosen


def read_input(case: Case) -> None:
    """Bad input ends here, whichever rules are selected.

    Raises:
        InputError: the model's files, or the training script, cannot be used.
    """
    if case.source.kind == "script":
        _ = case.script
        return
    try:
        _ = case.static
    except EvidenceError:
        return  # a source without files; the rules that need them say so


def verification_of(case: Case) -> Verification:
    """The training contract at the depth of the case, run; undetermined with its reason."""
    try:
        return case.verification
    except EvidenceError as error:
        return Verification.undetermined(str(error), depth=case.settings.depth)


def _proof(case: Case, crashed: list[str]) -> tuple[Verification | None, str | None]:
    """The verification of this depth, and the reason why the question stays open, if it does."""
    if crashed:
        reason: str | None = f"rule {', '.join(crashed)} failed; please report it"
    else:
        reason = None
    if not case.reaches("meta"):
        return None, reason
    try:
        _ = case.structure
        if not case.reaches("tiny"):
            return None, reason
        verification = case.verification
    except EvidenceError as error:
        return None, reason or str(error)
    if verification.outcome == "undetermined":
        reason = reason or verification.reason
    return verification, reason


def _environment(case: Case) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(case.environment)
