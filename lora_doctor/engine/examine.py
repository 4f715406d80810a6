"""One look at a case: every rule asked in its turn, and how far the run came.

The engine knows rules only by their interface, and rules know neither it nor each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_doctor.engine.answer import Answer, answer_of, without_training
from lora_doctor.engine.ask import BrokenRuleError, ask
from lora_doctor.engine.case import Case
from lora_doctor.engine.other_rules import OtherRules
from lora_doctor.engine.registry import RuleSelection
from lora_doctor.engine.rule import Rule
from lora_doctor.engine.saved_adapter import of_saved_adapter
from lora_doctor.engine.symptoms import find_by_message
from lora_doctor.errors import EvidenceError, Lack, LoraDoctorError, Remedy
from lora_doctor.results.depth import DEPTHS
from lora_doctor.results.diagnosis import Skipped
from lora_doctor.results.finding import SEVERITIES, Finding


@dataclass(frozen=True)
class Examination:
    """A case, what the rules said of it, and how far the run came."""

    case: Case
    answers: Answers
    answer: Answer


def examine(case: Case, rules: Sequence[type[Rule]], selection: RuleSelection) -> Examination:
    """Ask every selected rule, cheapest evidence first, and run the training contract.

    Raises:
        InputError: the model or the recipe cannot be read.
    """
    read_input(case)
    case.refine_proposal()
    answers = _ask(case, rules, selection)
    answer = without_training(case) if answers.unloadable else answer_of(case)
    return Examination(case, answers, answer)


def _ask(case: Case, rules: Sequence[type[Rule]], selection: RuleSelection) -> Answers:
    """The answers of the rules, cheapest evidence first; those that compare runs, and then a
    fallback, last."""
    answers = Answers()
    fallbacks = any(rule.is_fallback and rule in selection for rule in rules)

    def with_symptom(message: str) -> list[str]:
        found = find_by_message(message, rules)
        return [f"{match.rule.code} {match.rule.name}" for match in found]

    order = sorted(
        rules,
        key=lambda rule: (
            rule.is_fallback, rule.is_comparison, not rule.about_saved_adapter,
            DEPTHS.index(rule.depth), rule.code,
        ),
    )  # fmt: skip
    for rule in order:
        if answers.unloadable and not rule.about_saved_adapter:
            if rule in selection:
                answers.skip(rule, f"the adapter cannot be used as it is ({answers.unloadable})")
            continue
        if not case.settings.trains and rule.is_about_training():
            if rule in selection:
                answers.skip(rule, "nothing is trained: a saved adapter is merged or used")
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
            self.skip(rule, str(error), error.remedy, error.lacks)
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

    def skip(
        self,
        rule: type[Rule],
        reason: str,
        remedy: Remedy | None = None,
        lacks: Lack | None = None,
    ) -> None:
        """Enter why a rule gives no answer."""
        self.skipped.append(Skipped(rule.code, rule.name, reason, remedy, lacks))


def _explained_by(rule: type[Rule], case: Case) -> set[str]:
    """Checks of the training contract that a rule which nobody asked for accounts for."""
    try:
        return {name for finding in ask(rule, case) for name in finding.explains}
    except (LoraDoctorError, BrokenRuleError):
        return set()  # nobody asked for it: without evidence, or broken, it has no say


def read_input(case: Case) -> None:
    """Bad input ends here, whichever rules are selected.

    Raises:
        InputError: the model's files, or the training script, cannot be used.
    """
    if case.source.kind == "script":
        if case.has("program"):
            return
        _ = case.script
        return
    try:
        _ = case.static
    except EvidenceError:
        return  # a source without files; the rules that need them say so
