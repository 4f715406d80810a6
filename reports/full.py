"""``full``: the report for people at a terminal.

A healthy recipe is one line. Otherwise what failed, the evidence, the fix, and at the very end the
command to type next. Built of ``rich`` texts, never of its markup, so that brackets in a module
name stay brackets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lora_doctor.reports import _budgets, _memory, _supervision
from lora_doctor.reports._contract_text import MARKS, STYLES, contract
from lora_doctor.reports._page import MARGIN, Page, encodable
from lora_doctor.reports._recipe_lines import DiffLine, fix_diff, recipe_rows, set_by, text_diff
from lora_doctor.reports._text import many, seconds, shorten, shown, visible
from lora_doctor.reports._verdict import verdict_text
from lora_doctor.reports._words import (
    accepted_words,
    conditions,
    counted_by_strict,
    execution_words,
    fix_label,
    fix_words,
    offered,
    ordered,
    passed_words,
    place,
    proof_words,
    skip_reason,
    stopped_in,
    subject,
    tally,
    verdict_words,
)
from lora_doctor.results.formats import one_after_another

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.finding import Finding, Measurement
    from lora_doctor.results.fix import Fix
    from lora_doctor.results.supervision import ShownRow

NAME = "full"
join = one_after_another

_OUTCOMES = {"passed": "green", "removed": "yellow", "failed": "red", "not-executed": "dim"}
_MOST_EVIDENCE = 30
_MOST_FRAMES = 8
#: Tokens of a row that are shown, and rows beside those of a finding.
_MOST_TOKENS = 120
_MOST_ROWS = 1


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """The report as text of at most ``width`` columns; commands to copy are never broken."""
    page = Page(color, max(width, 40))
    if diagnosis.verdict == "healthy" and not verbose:
        _healthy(page, diagnosis)
        _supervised(page, diagnosis, verbose)
        _memory_plan(page, diagnosis, verbose)
        _budget_table(page, diagnosis)
    else:
        _report(page, diagnosis, verbose)
    return encodable(page.text(), encoding)


def _healthy(page: Page, diagnosis: Diagnosis) -> None:
    run = diagnosis.before
    assert run is not None  # `healthy` is only said of an executed contract
    where = ", ".join((diagnosis.depth, visible(run.device), seconds(diagnosis.seconds)))
    checked, depth = subject(diagnosis), "depth "
    verdict = verdict_words(diagnosis)[0].lower()
    checks = passed_words(run, " of the training contract")
    if len(f"✓ {checked}: {verdict}: {checks} ({depth}{where})") > page.console.width:
        checks, depth = passed_words(run, ""), ""
    page.line(
        (f"{MARKS['passed']} ", "green"), f"{checked}: ", (verdict, "bold green"),
        f": {checks} ", (f"({depth}{where})", "dim"), wrap=False,
    )  # fmt: skip
    _proposed(page, diagnosis)
    small = _memory.fits_nowhere(diagnosis)
    if small:
        page.line(("note ", "blue"), small)
    for finding in ordered(diagnosis.findings):
        page.line((f"{finding.rule} {finding.severity}", STYLES[finding.severity]), " ",
                  visible(finding.message, 600))  # fmt: skip
    for note in diagnosis.notes:
        # What was not run is not healthy either, and what learns nothing must not stay unsaid.
        if note.is_always_shown:
            page.line(("note ", "blue"), visible(note.text, 600))
    missed = counted_by_strict(diagnosis)
    if missed:
        page.line(("note ", "blue"), f"{missed} (--verbose tells why)")
    if diagnosis.model.script and diagnosis.next_command:
        page.line(("note ", "blue"), "the script was read, not run: a dry run shows what its "
                  "data and its own lines do")  # fmt: skip
        page.line(("Next: ", "bold"), visible(diagnosis.next_command, None), wrap=False)


def _proposed(page: Page, diagnosis: Diagnosis) -> None:
    """Which values nobody gave: the user did not choose them and must be able to see them."""
    origins = diagnosis.recipe.origins
    ours = {k: v for k, v in diagnosis.recipe.values.items() if origins.get(k) == "proposed"}
    if not ours:
        return
    values = ", ".join(
        f"{visible(key, 60)}={_compact(value)}" for key, value in ours.items()
    )  # fmt: skip
    page.line(("proposed by lora-doctor: ", "dim"), values)


def _compact(value: Any) -> str:
    return f"[{shown(value, 240)}]" if isinstance(value, (list, tuple)) else shown(value, 240)


def _report(page: Page, diagnosis: Diagnosis, verbose: bool) -> None:
    rows = conditions(diagnosis)
    words = [f"depth {value}" if label == "Depth" else value for label, value in rows]
    page.line((" · ".join(words), "dim"))
    verdict = verdict_text(diagnosis)
    page.line((verdict.headline, STYLES[verdict.tone]))
    if verdict.explanation:
        page.line(verdict.explanation)
    for frame in stopped_in(diagnosis, None if verbose else _MOST_FRAMES):
        page.line((frame, "dim"), indent=2)
    _proposed(page, diagnosis)
    for finding in ordered(diagnosis.findings):
        page.gap()
        _finding(page, diagnosis, finding, verbose)
    contract(page, diagnosis, verbose)
    _remaining(page, diagnosis)
    _supervised(page, diagnosis, verbose)
    _memory_plan(page, diagnosis, verbose)
    _budget_table(page, diagnosis)
    if diagnosis.recipe_diff and (verbose or len(diagnosis.applied) > 1):
        page.gap()
        page.line(("All edits together", "bold"))
        _diff(page, text_diff(diagnosis.recipe_diff), indent=2)
    for note in diagnosis.notes:
        page.gap()
        page.line(("note ", "blue"), visible(note.text, 600))
    _rest(page, diagnosis, verbose)
    if diagnosis.next_command:
        page.gap()
        page.line(("Next: ", "bold"), visible(diagnosis.next_command, None), wrap=False)


def _finding(page: Page, diagnosis: Diagnosis, finding: Finding, verbose: bool) -> None:
    page.line(
        (f"{finding.severity} {visible(finding.rule)}", STYLES[finding.severity]),
        (f" {visible(finding.name)}", "bold"),
        (f"  at {visible(place(finding, diagnosis.recipe), 200)}", "dim"),
    )
    page.line(visible(finding.message, None if verbose else 1200), indent=2)
    accepted = accepted_words(finding, diagnosis)
    if accepted:
        page.line((accepted, "dim"), indent=2)
    page.gap()
    measures = finding.evidence if verbose else finding.evidence[:_MOST_EVIDENCE]
    _evidence(page, measures, verbose)
    if len(measures) < len(finding.evidence):
        rest = len(finding.evidence) - len(measures)
        page.line((f"… {rest} more; --verbose shows them", "dim"), indent=2)
    for row in _supervision.rows_of(finding, diagnosis):
        page.gap()
        _tokens(page, row, verbose)
    page.gap()
    page.labelled("proof", proof_words(finding.proof))
    for fix in offered(finding):
        _fix(page, diagnosis, fix)
    page.labelled("more", f"lora-doctor explain {visible(finding.rule)}")


def _evidence(page: Page, measures: Iterable[Measurement], verbose: bool) -> None:
    """A table; where it would be too narrow to read, a line for each measurement."""
    characters, items = (4000, 200) if verbose else (300, 12)
    rows = [
        (visible(m.what, 200), shown(m.value, characters, items), visible(m.source, 200))
        for m in measures
    ]
    if page.narrow:
        for what, value, source in rows:
            page.line(f"{what}: {value} ", (f"({source})", "dim"), indent=2)
        return
    table = [(what, value, (source, "dim")) for what, value, source in rows]
    page.table(("evidence", "value", "source"), table, (34, 44, 40))


def _fix(page: Page, diagnosis: Diagnosis, fix: Fix) -> None:
    outcome, words = fix.executed.outcome, fix_words(fix)
    style = _OUTCOMES[outcome] if outcome == "failed" else STYLES[fix.safety]
    page.labelled(
        "fix", (f"{fix_label(fix)}: ", style), visible(fix.title, 600),
        (f" ({words})" if words else "", "dim"),
    )  # fmt: skip
    page.line((execution_words(fix), _OUTCOMES[outcome]), indent=MARGIN)
    if outcome == "failed":
        return
    _diff(page, fix_diff(fix, diagnosis.recipe), indent=MARGIN)
    if fix.patch:
        parameters = ", ".join(
            f"{visible(k, 60)}={shown(v, 120)}" for k, v in fix.patch.parameters.items()
        )
        page.line(
            "patch of the training process: ", (visible(fix.patch.name, 120), "bold"),
            f" ({parameters})" if parameters else "", indent=MARGIN,
        )  # fmt: skip


def _diff(page: Page, lines: Iterable[DiffLine], indent: int) -> None:
    for line in lines:
        page.line((f"{line.sign} {line.text}".rstrip(), STYLES[line.sign]), indent=indent)


def _remaining(page: Page, diagnosis: Diagnosis) -> None:
    """What the fixes did not remove, or brought with them; not what is accepted."""
    left = diagnosis.not_accepted(diagnosis.remaining or ())
    if not left or diagnosis.after is None:
        return
    page.gap()
    page.line((f"Still there after the fixes: {tally(left)}", "bold yellow"))
    for finding in ordered(left):
        page.line(f"{visible(finding.rule)} {visible(finding.message, 300)}", indent=2)


def _memory_plan(page: Page, diagnosis: Diagnosis, verbose: bool) -> None:
    """One line where there is a budget, for the rule says when it does not do; else the table."""
    plan = diagnosis.memory_plan
    if plan is None:
        reason = _memory.why_not(diagnosis)
        if reason:
            page.line(("memory: ", "dim"), f"not known: {reason}")
        return
    whole = verbose or plan.budget is None
    tail = "" if whole else " (--verbose shows the plan)"
    page.gap()
    page.line((f"Memory on {plan.place}", "bold"), f": {_memory.headline(plan)}", (tail, "dim"))
    if not whole:
        return
    page.table(
        _memory.header(plan), _memory.variants(plan), (36, 12, 12, 14, *[12] * len(plan.columns))
    )
    page.gap()
    page.table(("part", "size", "formula", "source"), _memory.parts(plan), (26, 12, 36, 24))
    for text in _memory.remarks(plan):
        page.line((text, "dim"), indent=2)


def _budget_table(page: Page, diagnosis: Diagnosis) -> None:
    """Every budget with its number and limit, also those that are kept."""
    if diagnosis.budgets:
        page.gap()
        page.table(_budgets.HEADER, _budgets.rows(diagnosis), (20, 12, 26, 18, 40))


def _supervised(page: Page, diagnosis: Diagnosis, verbose: bool) -> None:
    """How much is supervised; a row token by token, all of them with ``verbose``."""
    found = diagnosis.supervision
    if found is None:
        return
    page.gap()
    page.line(("What is supervised", "bold"), f": {_supervision.headline(found)}")
    whole = verbose or diagnosis.verdict != "healthy"
    if whole:
        page.table(("", ""), _supervision.facts(found), (24, 70))
        for text in _supervision.others(found):
            page.line((text, "dim"), indent=2)
    told = {row.number for one in diagnosis.findings for row in
            _supervision.rows_of(one, diagnosis)}  # fmt: skip
    rows = [row for row in found.shown if row.pieces and (verbose or row.number not in told)]
    shown = rows if verbose else rows[:_MOST_ROWS] if not told else []
    for row in shown:
        page.gap()
        _tokens(page, row, verbose)
    if shown or told:
        page.line((_supervision.LEGEND, "dim"), indent=2)
    for note in found.notes if whole else ():
        page.line((visible(note.text, 400), "dim"), indent=2)


def _tokens(page: Page, row: ShownRow, verbose: bool) -> None:
    page.line((_supervision.row_words(row), "dim"), indent=2)
    parts: list[tuple[str, str]] = []
    cut = False
    for run in _supervision.runs(row, 10_000 if verbose else _MOST_TOKENS):
        if run.cut and not cut:
            cut = True
            parts.append((_supervision.CUT, "yellow"))
        parts.append(_run_text(run))
    page.line(*parts, indent=4)


def _run_text(run: _supervision.Run) -> tuple[str, str]:
    text = "".join(run.tokens)
    if run.left_out:
        return f" … {many(run.left_out, 'token')} … ", "dim"
    if not run.supervised:
        return text, "dim"
    style = "yellow" if run.cut else "bold green"
    return f"{_supervision.OPEN}{text}{_supervision.CLOSE}", style


def _rest(page: Page, diagnosis: Diagnosis, verbose: bool) -> None:
    page.gap()
    skipped = len(diagnosis.skipped)
    tail = "" if verbose or not skipped else " (--verbose tells why)"
    page.line(
        (f"{many(len(diagnosis.passed), 'rule')} passed, {skipped} skipped{tail}", "dim")
    )  # fmt: skip
    missed = counted_by_strict(diagnosis)
    if missed:
        page.line((missed, "dim"))
    if not verbose:
        return
    for item in diagnosis.skipped:
        name = f"{visible(item.rule)} {visible(item.name)}: "
        page.line((name, "dim"), skip_reason(item, 400), indent=2)
    if diagnosis.passed:
        page.line(
            ("passed: ", "dim"), ", ".join(visible(code) for code in diagnosis.passed), indent=2
        )
    page.gap()
    page.line(("Recipe", "bold"))
    page.table(("key", "value", "set by"), recipe_rows(
        diagnosis.recipe.values, set_by(diagnosis)), (30, 50, 30))  # fmt: skip
    if diagnosis.gathered:
        page.gap()
        page.line(("Evidence", "bold"))
        page.table(
            ("piece", "time", "source"),
            [
                (visible(item.name, 60), seconds(item.seconds),
                 visible(shorten(item.unavailable or item.source, 300)))
                for item in diagnosis.gathered
            ],
            (22, 16, 56),
        )  # fmt: skip


def finding_text(diagnosis: Diagnosis, finding: Finding, *, width: int = 80) -> str:
    """One finding alone, as the report shows it."""
    page = Page(color=False, width=width)
    _finding(page, diagnosis, finding, verbose=False)
    return page.text()
