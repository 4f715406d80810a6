"""The engine: which rules, in which order, each one isolated; then the fixes, and the proof.

The engine knows rules only by their interface, and rules know neither it nor each other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lora_doctor.engine.answer import answer_of, strictly, without_training
from lora_doctor.engine.ask import BrokenRuleError, ask
from lora_doctor.engine.case import Case
from lora_doctor.engine.other_rules import OtherRules
from lora_doctor.engine.registry import RuleSelection
from lora_doctor.engine.rule import Rule
from lora_doctor.engine.saved_adapter import of_saved_adapter
from lora_doctor.engine.symptoms import find_by_message
from lora_doctor.errors import EvidenceError, LoraDoctorError, Remedy
from lora_doctor.results.depth import DEPTHS
from lora_doctor.results.diagnosis import AppliedFix, Diagnosis, Skipped
from lora_doctor.results.finding import SEVERITIES, Finding, first_fix
from lora_doctor.results.note import Note
from lora_doctor.results.verification import Verification

#: A fix may uncover the next finding; more rounds than this would be going in circles.
MAX_ROUNDS = 5


def diagnose(
    case: Case,
    rules: Sequence[type[Rule]],
    selection: RuleSelection | None = None,
    *,
    strict: bool = False,
) -> Diagnosis:
    """Ask every selected rule, cheapest evidence first, and run the training contract.

    A rule whose evidence cannot be had is skipped with the reason; one that crashes is skipped
    with its exception and leaves the diagnosis undetermined. ``strict``: so does one that was
    skipped for a reason that the user can change.

    Raises:
        InputError: the model or the recipe cannot be read.
    """
    start = time.perf_counter()
    read_input(case)
    case.refine_proposal()
    answers = _ask(case, rules, selection or RuleSelection())
    answer = without_training(case) if answers.unloadable else answer_of(case)
    reasons = (
        answers.why_crashed(),
        answer.open,
        strictly(answers.skipped) if strict else None,
    )
    return Diagnosis(
        model=case.source,
        recipe=case.recipe,
        depth=case.settings.depth,
        environment=_environment(case),
        findings=answers.sorted_findings(),
        passed=tuple(answers.passed),
        skipped=tuple(answers.skipped),
        gathered=tuple(case.gathered),
        structure=Case.structure.known(case),
        before=answer.before,
        undetermined=next(filter(None, reasons), None),
        reached=answer.reached,
        limit=answer.limit,
        memory_plan=Case.memory_plan.known(case),
        supervision=Case.supervision.known(case),
        notes=_notes(case, answer.before),
        seconds=time.perf_counter() - start,
    )


def _ask(case: Case, rules: Sequence[type[Rule]], selection: RuleSelection) -> Answers:
    """The answers of the rules, a fallback last, cheapest evidence first."""
    answers = Answers()
    fallbacks = any(rule.is_fallback and rule in selection for rule in rules)

    def with_symptom(message: str) -> list[str]:
        found = find_by_message(message, rules)
        return [f"{match.rule.code} {match.rule.name}" for match in found]

    order = sorted(
        rules,
        key=lambda rule: (
            rule.is_fallback, not rule.about_saved_adapter, DEPTHS.index(rule.depth), rule.code
        ),
    )  # fmt: skip
    for rule in order:
        if answers.unloadable and not rule.about_saved_adapter:
            if rule in selection:
                answers.skip(rule, f"the adapter cannot be used as it is ({answers.unloadable})")
            continue
        others = OtherRules(frozenset(answers.explained), with_symptom)
        if rule in selection:
            answers.ask(rule, case.beside(others))
        elif fallbacks and not rule.is_fallback and case.reaches(rule.depth):
            # What it knows is not reported, but it is not unexplained either.
            answers.explained |= _explained_by(rule, case.beside(others))
    return answers


@dataclass
class Answers:
    """What the rules that were asked so far have said."""

    findings: list[Finding] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    #: Codes of rules that raised something else than an error of ours.
    crashed: list[str] = field(default_factory=list)
    #: Checks of the training contract that a finding accounts for.
    explained: set[str] = field(default_factory=set)
    #: The rule by which a saved adapter cannot be used as it is; empty without one.
    unloadable: str = ""

    def ask(self, rule: type[Rule], case: Case) -> None:
        """Enter the findings of one rule, or why there is no answer."""
        if not case.reaches(rule.depth):
            self.skip(rule, case.too_shallow(rule.depth))
            return
        try:
            found = ask(rule, case)
        except EvidenceError as error:
            self.skip(rule, str(error), error.remedy)
        except BrokenRuleError as error:
            self.crashed.append(rule.code)
            self.skip(rule, str(error))
        else:
            if case.settings.adapter is not None:
                found = [of_saved_adapter(finding) for finding in found]
                errors = any(finding.severity == "error" for finding in found)
                if rule.about_saved_adapter and errors:
                    self.unloadable = self.unloadable or rule.code
            self.findings += found
            self.explained.update(name for finding in found for name in finding.explains)
            if not found:
                self.passed.append(rule.code)

    def sorted_findings(self) -> tuple[Finding, ...]:
        """The findings, the most severe first."""
        return tuple(
            sorted(self.findings, key=lambda one: (SEVERITIES.index(one.severity), one.rule))
        )

    def why_crashed(self) -> str | None:
        """Why rules that failed leave the question open; ``None`` when none did."""
        return f"rule {', '.join(self.crashed)} failed; please report it" if self.crashed else None

    def skip(self, rule: type[Rule], reason: str, remedy: Remedy | None = None) -> None:
        """Enter why a rule gives no answer."""
        self.skipped.append(Skipped(rule.code, rule.name, reason, remedy))


def _notes(case: Case, before: Verification | None) -> tuple[Note, ...]:
    """What was decided unasked on the way to the recipe, and what nothing was run on or in."""
    structure = Case.structure.known(case)
    decided = structure.notes if structure is not None else ()
    seen = before.notes if before is not None else ()
    return (*decided, *(note for note in seen if note.is_gap))


def _explained_by(rule: type[Rule], case: Case) -> set[str]:
    """Checks of the training contract that a rule which nobody asked for accounts for."""
    try:
        return {name for finding in ask(rule, case) for name in finding.explains}
    except (LoraDoctorError, BrokenRuleError):
        return set()  # nobody asked for it: without evidence, or broken, it has no say


def diagnose_and_fix(
    case: Case,
    rules: Sequence[type[Rule]],
    selection: RuleSelection | None = None,
    *,
    unsafe: bool = False,
    strict: bool = False,
) -> Diagnosis:
    """Diagnose, apply the first allowed fix of each finding, and diagnose again until nothing
    changes. Nothing is written; ``after`` is the contract executed on the fixed recipe."""
    start = time.perf_counter()
    first = current = diagnose(case, rules, selection, strict=strict)
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
        current = diagnose(case, rules, selection, strict=strict)
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
        reached=current.reached,
        limit=current.limit,
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
        return case.verification.as_answer()
    except EvidenceError as error:
        open_ = Verification.undetermined(
            str(error), depth=case.settings.depth, device=case.settings.device
        )
        return replace(open_, limit=error.limit, obstacle="limit") if error.limit else open_


def _environment(case: Case) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(case.environment)
