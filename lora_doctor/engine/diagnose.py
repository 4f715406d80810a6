"""The engine: what the rules say of a case, the fixes, each tried, and the proof."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from lora_doctor.engine.answer import strictly
from lora_doctor.engine.budgets import check_budgets, why_open
from lora_doctor.engine.case import Case
from lora_doctor.engine.fix_outcomes import contract_words, is_of_text
from lora_doctor.engine.ignored import with_ignored
from lora_doctor.engine.registry import RuleSelection
from lora_doctor.engine.rule import Rule
from lora_doctor.engine.try_fixes import Trials, can_be_written, fixed, proven
from lora_doctor.errors import EvidenceError, FactoryError, InputError, ModelClassError
from lora_doctor.recipe.program.read_setup import setup_of
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import AppliedFix, Diagnosis
from lora_doctor.results.finding import Finding, first_fix
from lora_doctor.results.fix import Execution
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
    execute_fixes: bool = True,
) -> Diagnosis:
    """Ask every selected rule, cheapest evidence first, and run the training contract; with
    findings, also on the recipe after each of their fixes.

    A rule whose evidence cannot be had is skipped with the reason; one that crashes is skipped
    with its exception and leaves the diagnosis undetermined. ``strict``: so does one that was
    skipped for a reason that the user can change.

    Raises:
        InputError: the model or the recipe cannot be read, or made by the factory, and no rule
            knows why.
    """
    trials = Trials(rules, selection or RuleSelection())
    return _diagnose(case, trials, strict=strict, execute_fixes=execute_fixes)


def _diagnose(
    case: Case, trials: Trials, *, strict: bool, execute_fixes: bool = True, others: bool = True
) -> Diagnosis:
    """``others``: also try fixes that ``fix`` would not take."""
    start = time.perf_counter()
    first = trials.examine(case)
    case, answers, answer = first.case, first.answers, first.answer
    findings = answers.sorted_findings()
    if execute_fixes:
        findings = trials.label(first, others=others)
    raised = case.store.error("structure")
    if isinstance(raised, (FactoryError, ModelClassError)) and not findings:
        raise InputError(str(raised))
    budgets = check_budgets(case, trials.budgets)
    reasons = (
        answers.why_crashed(),
        answer.open,
        _other_quantization(case) if answer.before is not None else None,
        why_open(budgets, case.settings.depth),
        strictly(answers.skipped) if strict else None,
    )
    diagnosis = Diagnosis(
        model=case.source,
        recipe=case.recipe,
        depth=case.settings.depth,
        environment=_environment(case),
        findings=findings,
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
        budgets=budgets,
    )
    return with_ignored(diagnosis, trials.codes)


def _notes(case: Case, before: Verification | None) -> tuple[Note, ...]:
    """What was decided unasked on the way to the recipe, and what nothing was run on or in."""
    structure = Case.structure.known(case)
    decided = structure.notes if structure is not None else ()
    seen = before.notes if before is not None else ()
    found = (*decided, *_notes_on_program(case), *(note for note in seen if note.is_gap))
    return tuple(dict.fromkeys(found))  # both runs lack the same attention


def _notes_on_program(case: Case) -> tuple[Note, ...]:
    """On what condition a script was read as it was."""
    written = case.asked.written
    if written is None:
        return ()
    gpu = [f"read as on a GPU with bfloat16: {question}" for question in written.assumed]
    rest = (Note("not-proven", text) for text in written.first_rounds)
    start = [f"read as {written.start.place} starts it"] if written.start is not None else []
    # A deeper run says why it is undetermined; at depth static the script alone is an answer.
    alone = case.settings.depth == "static" and case.source.kind == "script"
    why = written.out_of_reach if alone else ""
    unread = [Note("not-observed", f"only the script was read: {why}", why)] if why else []
    if written.around and not case.has("dry_run"):
        text = "is not built: its own layers are not looked at, only the model inside it"
        unread.append(Note("not-proven", f"{written.around} {text}"))
    return (*(Note("choice", text) for text in (*start, *gpu, *written.other_releases)), *rest,
            *unread)  # fmt: skip


def _other_quantization(case: Case) -> str | None:
    """Why nothing is proven of the model of a script: it is loaded with a quantization that no key
    of a recipe says. A script that is itself the source says so before."""
    setup = None if case.has("dry_run") else setup_of(case.asked)
    if setup is None or not setup.other_quantization or case.source.kind == "script":
        return None
    where = setup.other_quantization
    return f"run without the quantization that the script loads the model with: {where}"


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
    selection = selection or RuleSelection()
    trials = Trials(rules, selection, unsafe=unsafe, patient=True)
    first = current = _diagnose(case, trials, strict=strict)
    applied: list[AppliedFix] = []
    for _ in range(MAX_ROUNDS):
        wanted = [
            finding
            for finding in current.not_accepted(current.findings)
            if finding.rule not in selection.unfixed
        ]
        known = trials.examine(case).case
        chosen = _choose(wanted, unsafe, applied)
        # One whose file has no place for it is told as such, and keeps no other from being applied.
        chosen = [item for item in chosen if can_be_written(known, item.fix)]
        if not chosen:
            break
        applied += chosen
        case = fixed(known, [item.fix for item in chosen])
        current = _diagnose(case, trials, strict=strict, others=False)
    if not applied:
        return replace(first, remaining=first.findings, seconds=time.perf_counter() - start)
    applied = _as_they_came_out(applied, current, first.recipe)
    return replace(
        first,
        findings=tuple(proven(finding, applied) for finding in first.findings),
        applied=tuple(applied),
        fixed_recipe=current.recipe,
        after=current.before,
        remaining=current.findings,
        accepted=tuple(dict.fromkeys((*first.accepted, *current.accepted))),
        # What the fixes were for may have kept the first run from an answer.
        undetermined=current.undetermined,
        reached=current.reached,
        limit=current.limit,
        seconds=time.perf_counter() - start,
    )


def _as_they_came_out(
    applied: Sequence[AppliedFix], last: Diagnosis, recipe: Recipe
) -> list[AppliedFix]:
    """The applied fixes, all in force in the last run: where it passed, each was executed that
    changes something of the recipe."""
    run = last.before
    if run is None or run.outcome != "passed":
        return list(applied)
    return [
        replace(
            item,
            fix=item.fix.after(
                Execution(
                    "passed",
                    contract_words(run),
                    last.depth,
                    tuple(one.rule for one in applied if one is not item),
                )
            ),
        )
        if not is_of_text(item.fix, recipe)
        else item
        for item in applied
    ]


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


def verification_of(case: Case) -> Verification:
    """The training contract at the depth of the case, run; undetermined with its reason.

    Raises:
        InputError: the factory that makes the model raised.
    """
    try:
        return case.verification.as_answer()
    except (FactoryError, ModelClassError) as error:
        raise InputError(str(error)) from error
    except EvidenceError as error:
        open_ = Verification.undetermined(
            str(error), depth=case.settings.depth, device=case.settings.device
        )
        return replace(open_, limit=error.limit, obstacle="limit") if error.limit else open_


def _environment(case: Case) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(case.environment)
