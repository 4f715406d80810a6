"""Fixes, tried: each is applied to the recipe, read back from the file that it would write, and run
before it is called safe.

What ``fix`` would apply is run together first, which proves all of it in one run; only where that
does not hold is each run alone. Then come the others, one by one beside the first.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_doctor.engine.case import Case
from lora_doctor.engine.evidence_store import kinds
from lora_doctor.engine.examine import Examination, examine
from lora_doctor.engine.fix_outcomes import is_of_text, outcome_of, with_place
from lora_doctor.engine.registry import RuleSelection
from lora_doctor.engine.rule import Rule
from lora_doctor.errors import InputError, LoraDoctorError
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import AppliedFix, Gathered
from lora_doctor.results.finding import Finding
from lora_doctor.results.fix import Execution, Fix

#: Seconds that ``check`` spends on trying fixes; the libraries alone take about as long to import.
MOST_SECONDS = 10.0
BY_HAND = Execution(detail="a manual step")
#: A finding and one of its fixes, by their places.
Choice = tuple[int, int]


class Trials:
    """Tries the fixes of the findings of one run. A recipe that was looked at is not run again.

    ``unsafe``: whether ``fix`` was asked for unsafe fixes too. ``patient``: what would be applied
    is run however long it takes.
    """

    def __init__(
        self,
        rules: Sequence[type[Rule]],
        selection: RuleSelection,
        *,
        unsafe: bool = False,
        patient: bool = False,
    ) -> None:
        self._rules, self._selection = rules, selection
        self._unsafe, self._patient = unsafe, patient
        self._fallbacks = {rule.code for rule in rules if rule.is_fallback}
        self._known: dict[str, Examination] = {}
        self._spent = 0.0

    @property
    def codes(self) -> list[str]:
        """Of all rules there are, selected or not; empty where only the fallback is asked, as
        ``verify`` does."""
        all_of_them = len(self._rules) > len(self._fallbacks)
        return [rule.code for rule in self._rules] if all_of_them else []

    @property
    def budgets(self) -> list[str]:
        """Names of the budgets that the selected rules look at."""
        return [name for rule in self._rules if rule in self._selection for name in rule.budgets]

    def examine(self, case: Case) -> Examination:
        """What the rules say of a case; what is known of this recipe, where something is."""
        key = _key(case.asked, case.patches)
        if key not in self._known:
            self._known[key] = examine(case, self._rules, self._selection)
        return self._known[key]

    def label(self, first: Examination, *, others: bool = True) -> tuple[Finding, ...]:
        """The findings, each fix with whether it was run and what came out; a fix that changes
        nothing is left out. ``others``: also try those that ``fix`` would not take."""
        recipe = first.case.recipe
        findings = [_offered(finding, recipe) for finding in first.answers.sorted_findings()]
        tried = _Round(self, first, findings)
        why = _nothing_is_run(first)
        if why:
            tried.read_again()
        else:
            tried.run_leads()
            if others:
                tried.run_others()
        why = why or "not tried beside what was applied; lora-doctor check tries it"
        return tuple(
            replace(
                finding,
                fixes=tuple(
                    fix.after(tried.came_out.get((i, j)) or _not_run(first.case, fix, why))
                    for j, fix in enumerate(finding.fixes)
                ),
            )
            for i, finding in enumerate(findings)
        )

    def would_take(self, finding: Finding) -> int | None:
        """The place of the fix that ``fix`` would apply, if it holds."""
        if finding.rule in self._selection.unfixed:
            return None
        fixes = finding.fixes
        wanted = ("safe", "unsafe") if self._unsafe else ("safe",)
        return next((j for j, fix in enumerate(fixes) if fix.safety in wanted), None)

    def run(
        self, first: Examination, chosen: Sequence[Choice], findings: Sequence[Finding]
    ) -> dict[Choice, Execution]:
        """How each of these fixes came out, all of them in force together."""
        fixes = [findings[i].fixes[j] for i, j in chosen]
        start = time.perf_counter()
        try:
            case = fixed(first.case, fixes)
        except InputError as error:
            return dict.fromkeys(chosen, Execution(detail=f"cannot be written: {error}"))
        try:
            after = self.examine(case)
        except LoraDoctorError as error:
            return dict.fromkeys(chosen, Execution(detail=f"cannot be run: {error}"))
        seconds = time.perf_counter() - start
        self._spent += seconds
        first.case.store.gathered.append(
            Gathered(
                "fixes", f"the fixed recipe, run: {len(fixes)} of its fixes", round(seconds, 3)
            )
        )
        codes = [findings[i].rule for i, _ in chosen]
        came_out = {
            choice: outcome_of(first, after, findings[choice[0]], self._fallbacks,
                              [code for n, code in enumerate(codes) if chosen[n] != choice],
                              findings[choice[0]].fixes[choice[1]])
            for choice in chosen
        }  # fmt: skip
        return {
            choice: with_place(executed, findings[choice[0]].fixes[choice[1]], first.case.recipe)
            for choice, executed in came_out.items()
        }

    def too_long(self, first: Examination, *, applied: bool = False) -> str:
        """Why another run is not made; empty when it may be. ``applied``: of what ``fix`` takes."""
        if applied and self._patient:
            return ""
        seconds = _cost(first)
        if self._spent + seconds <= MOST_SECONDS:
            return ""
        return (
            f"a run takes about {seconds:.0f} s here, and check spends {MOST_SECONDS:.0f} s on "
            "trying fixes; lora-doctor fix runs what it applies"
        )


class _Round:
    """The fixes of one set of findings. ``came_out``: how those that were tried did."""

    def __init__(self, trials: Trials, first: Examination, findings: Sequence[Finding]) -> None:
        self._trials, self._first, self._findings = trials, first, findings
        self.came_out: dict[Choice, Execution] = {}
        self._leads = self._without_conflict(
            (i, j) for i, finding in enumerate(findings)
            if (j := trials.would_take(finding)) is not None
        )  # fmt: skip

    def run_leads(self) -> None:
        """What ``fix`` would take: together, and each alone where that does not hold."""
        leads = [choice for choice in self._leads if self._can_run(choice)]
        if not leads or not self._may_run(leads, applied=True):
            return
        self.came_out |= self._trials.run(self._first, leads, self._findings)
        if len(leads) > 1 and not all(map(self._holds, leads)):
            for choice in leads:
                if self._may_run([choice], applied=True):
                    self.came_out |= self._trials.run(self._first, [choice], self._findings)

    def read_again(self) -> None:
        """Fixes of the text of a program or set-up alone: read again after each, nothing is run.
        In a dry run that text is not where the recipe comes from, and none is tried."""
        recipe = self._first.case.recipe
        if recipe.written is None and recipe.set_up is None:
            return
        for i, finding in enumerate(self._findings):
            for j, fix in enumerate(finding.fixes):
                if is_of_text(fix, recipe):
                    self.came_out |= self._trials.run(self._first, [(i, j)], self._findings)

    def run_others(self) -> None:
        """Every other fix: in the place of the first of its finding, beside those that hold."""
        for i, finding in enumerate(self._findings):
            for j in range(len(finding.fixes)):
                choice = (i, j)
                if choice in self.came_out or not self._can_run(choice):
                    continue
                if not self._may_run([choice]):
                    continue
                beside = [lead for lead in self._leads if lead[0] != i and self._holds(lead)]
                together = self._without_conflict([choice, *beside])
                run = self._trials.run(self._first, together, self._findings)
                self.came_out[choice] = run[choice]

    def _holds(self, choice: Choice) -> bool:
        known = self.came_out.get(choice)
        return known is not None and known.outcome in ("passed", "removed")

    def _can_run(self, choice: Choice) -> bool:
        return not _cannot_run(self._first.case, self._fix(choice))

    def _may_run(self, choices: Sequence[Choice], *, applied: bool = False) -> bool:
        why = self._trials.too_long(self._first, applied=applied)
        if why:
            self.came_out |= dict.fromkeys(choices, Execution(detail=why))
        return not why

    def _fix(self, choice: Choice) -> Fix:
        return self._findings[choice[0]].fixes[choice[1]]

    def _without_conflict(self, choices: Iterable[Choice]) -> list[Choice]:
        """Never two that edit one key."""
        touched: set[str] = set()
        kept = []
        for choice in choices:
            keys = {edit.key for edit in self._fix(choice).edits}
            if not keys & touched:
                touched |= keys
                kept.append(choice)
        return kept


def fixed(case: Case, fixes: Sequence[Fix]) -> Case:
    """The case after these fixes, its recipe read back from the file that they would write.

    Raises:
        InputError: they cannot be written.
    """
    edits = [edit for fix in fixes for edit in fix.edits]
    patches = case.patches
    for fix in fixes:
        if fix.patch and fix.patch not in patches:
            patches = (*patches, fix.patch)
    from lora_doctor.recipe.files.read_write import as_written

    rewrites = [rewrite for fix in fixes for rewrite in fix.rewrites]
    recipe = as_written(case.recipe, edits, rewrites)
    again = case.again(recipe, patches)
    if patches == case.patches and recipe.values == case.recipe.values:
        # Another text of the file that says the same: only that is read again.
        read_anew = tuple(one.name for one in (Case.program, Case.script, Case.set_up,
                                               Case.side_files))  # fmt: skip
        same = (name for name in kinds(Case, of_recipe=True) if name not in read_anew)
        case.store.share_with(again.store, same)
    return again


def can_be_written(case: Case, fix: Fix) -> bool:
    """Whether the file of the recipe has a place for what the fix changes."""
    try:
        fixed(case, [fix])
    except InputError:
        return False
    return True


def proven(finding: Finding, applied: Sequence[AppliedFix]) -> Finding:
    """The finding, its applied fix labelled with how the run with all applied fixes came out."""
    own = {item.fix.title: item.fix for item in applied if item.rule == finding.rule}
    return replace(finding, fixes=tuple(own.get(fix.title, fix) for fix in finding.fixes))


def _offered(finding: Finding, recipe: Recipe) -> Finding:
    """The finding without fixes that would leave everything as it is, with the place in the user's
    file that it is about."""
    fixes = tuple(fix for fix in finding.fixes if _changes(fix, recipe))
    return replace(finding, fixes=fixes, written=_written_at(finding, recipe))


def _written_at(finding: Finding, recipe: Recipe) -> str:
    """Where the key stands that the finding is about, or that its first fix changes."""
    if finding.location.kind == "file":
        return finding.written
    named = [finding.location.path] if finding.location.kind == "recipe" else []
    keys = [*named, *(edit.key for fix in finding.fixes for edit in fix.edits)]
    places = [recipe.place_of(key) for key in keys]
    return next((str(place) for place in places if place is not None), finding.written)


def _changes(fix: Fix, recipe: Recipe) -> bool:
    if fix.patch is not None or fix.rewrites or not fix.edits:
        return True
    try:
        edited = recipe.edit(fix.edits)
        return edited.values != recipe.values or _entries(edited) != _entries(recipe)
    except InputError:
        return True  # running it says what is wrong with the edit


def _entries(recipe: Recipe) -> Mapping[str, Any]:
    return recipe.set_up.entries if recipe.set_up else {}


def _nothing_is_run(first: Examination) -> str:
    """Why no fix of this case can be run; empty when it can."""
    case = first.case
    if case.source.kind == "script":
        return "MODEL is a training script, which is only read"
    if not case.reaches("tiny"):
        return f"depth {case.settings.depth}"
    if Case.dry_run.known(case) is not None:
        return "a dry run runs the command as it stands"
    if first.answers.unloadable:
        return f"the adapter cannot be used as it is ({first.answers.unloadable})"
    return ""


def _cannot_run(case: Case, fix: Fix) -> str:
    """Why this fix cannot be run on this case; empty when it can."""
    if fix.safety == "manual":
        return BY_HAND.detail
    if fix.patch is not None and case.source.kind == "module":
        return "the patch has to be in force before the module is made"
    return ""


def _not_run(case: Case, fix: Fix, why: str) -> Execution:
    return Execution(detail=_cannot_run(case, fix) or why)


def _cost(first: Examination) -> float:
    """Seconds that a look at another recipe takes, by the last one."""
    of_recipe = ("structure", "memory_plan", "tiny", "full")
    return sum(piece.seconds for piece in first.case.gathered if piece.name in of_recipe)


def _key(recipe: Recipe, patches: Sequence[Patch]) -> str:
    text = recipe.written.data if recipe.written is not None else None
    read = hashlib.sha256(text).hexdigest() if text is not None else ""
    given = [recipe.to_json(), read, [patch.to_json() for patch in patches]]
    return json.dumps(given, sort_keys=True, default=str)
