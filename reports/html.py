"""``html``: the report as one self-contained page that needs no script and no network.

The page is built of ``report.html.j2`` and ``report.css``. Everything in it is hostile until shown
otherwise: the template escapes every value, values go through ``visible`` first, no id, class,
address or style is made from them, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor.reports import _budgets, _runs, _supervision
from lora_doctor.reports._charts import layer_charts, loss_chart
from lora_doctor.reports._costs import costs
from lora_doctor.reports._embedded import Embedded
from lora_doctor.reports._limits import Limits
from lora_doctor.reports._memory_chart import memory_view
from lora_doctor.reports._recipe_lines import fix_diff, literal, recipe_rows, set_by, text_diff
from lora_doctor.reports._text import many, shorten, shown, visible
from lora_doctor.reports._verdict import is_mended, next_words, verdict_text
from lora_doctor.reports._words import (
    accepted_words,
    conditions,
    counted_by_strict,
    execution_words,
    fix_label,
    fix_words,
    offered,
    ordered,
    place,
    proof_words,
    skip_reason,
    stopped_in,
    tally,
)

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.finding import Finding
    from lora_doctor.results.supervision import ShownRow

NAME = "html"
#: A page that a mail or a pull request takes without objection.
MAX_BYTES = 295_000


#: Tried in this order until the page is small enough.
_LEVELS = (
    Limits(600, 40, 20, 200, 6_000, 36, 320, 120_000),
    Limits(300, 15, 8, 80, 2_000, 24, 120, 60_000),
    Limits(120, 6, 3, 20, 500, 12, 40, 20_000),
)


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """The page, below 300 kB whatever the model is."""
    page, embedded = "", Embedded(diagnosis)
    for limits in _LEVELS:
        page = _template().render(_view(diagnosis, limits), json=embedded.within(limits.json))
        page = page.encode(encoding, "xmlcharrefreplace").decode(encoding)
        if len(page.encode()) <= MAX_BYTES:
            break
    return page


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def safe_text(value: Any) -> Any:
        """The last gate: also what the view forgot to make visible."""
        if value is None:
            return ""
        if isinstance(value, Markup) or not isinstance(value, str):
            return value
        return visible(value, None, lines=True)

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
        finalize=safe_text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    css = (folder / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    environment.globals["css"] = Markup(css)
    # Only this very style sheet: an injected <style> or style="" would be refused as well.
    environment.globals["style_hash"] = f"sha256-{digest}"
    return environment.get_template("report.html.j2")


def _view(diagnosis: Diagnosis, limits: Limits) -> dict[str, Any]:
    """Everything that the template shows, as plain data."""
    from lora_doctor.reports import _picture

    verdict = verdict_text(diagnosis)
    explanation = verdict.explanation
    if diagnosis.verdict == "healthy" and "proposed" in diagnosis.recipe.origins.values():
        explanation += " What the recipe left open was proposed by lora-doctor."
    findings = ordered(diagnosis.findings)
    contract, not_run = _runs.contract(diagnosis)
    return {
        "model": visible(diagnosis.model, 120),
        "tone": verdict.tone,
        "headline": verdict.headline,
        "explanation": explanation,
        "written": bool(diagnosis.written_to),
        "counts": _counts(diagnosis),
        "conditions": conditions(diagnosis),
        "next_command": visible(diagnosis.next_command, 4000),
        "next_words": next_words(diagnosis),
        "findings": [_finding(item, diagnosis, limits) for item in findings[: limits.findings]],
        "more_findings": [_line(item) for item in findings[limits.findings :]][: limits.lines],
        "hidden_findings": max(len(findings) - limits.findings - limits.lines, 0),
        "remaining": _remaining(diagnosis, limits),
        "contract": contract,
        "not_run": not_run,
        "many": many,
        "loss": loss_chart(diagnosis),
        "layers": layer_charts(diagnosis),
        "runs": _runs.runs(diagnosis, limits),
        "picture": _picture.picture(diagnosis, most_cells=limits.cells, most_rows=limits.lines),
        "supervision": _supervision_view(diagnosis, limits),
        "memory": memory_view(diagnosis),
        "budgets": _budgets.rows(diagnosis),
        "costs": costs(diagnosis, limits.text),
        "passed": [visible(code, 60) for code in diagnosis.passed[: limits.lines]],
        "passed_count": len(diagnosis.passed),
        "skipped": [
            (visible(item.rule, 60), visible(item.name, 80), skip_reason(item, limits.text))
            for item in diagnosis.skipped[: limits.lines]
        ],
        "skipped_count": len(diagnosis.skipped),
        "strict": counted_by_strict(diagnosis),
        "stopped_in": stopped_in(diagnosis, 100),
        "recipe": _recipe(diagnosis, limits),
        "recipe_diff": text_diff(diagnosis.recipe_diff[: limits.traceback * 2]),
        "environment": _environment(diagnosis, limits),
        "notes": [visible(note.text, limits.text) for note in diagnosis.notes[: limits.lines]],
    }


def _counts(diagnosis: Diagnosis) -> list[tuple[str, int, str]]:
    """Number, noun and where on the page; zeros are left out but for what passed."""
    left = [one for one in diagnosis.findings if not is_mended(one, diagnosis)]
    severities = [finding.severity for finding in left]
    rows = [
        ("fixed", len(diagnosis.findings) - len(left), "findings"),
        ("error", severities.count("error"), "findings"),
        ("warning", severities.count("warning"), "findings"),
        ("info", severities.count("info"), "findings"),
        ("skipped", len(diagnosis.skipped), "rules"),
    ]
    return [row for row in rows if row[1]] + [("passed", len(diagnosis.passed), "rules")]


def _finding(finding: Finding, diagnosis: Diagnosis, limits: Limits) -> dict[str, Any]:
    applied = {(item.rule, item.fix.title) for item in diagnosis.applied}
    proven = diagnosis.after is not None and diagnosis.after.outcome == "passed"
    tried = "proven below" if proven else "tried below" if diagnosis.after else "chosen"
    mended = is_mended(finding, diagnosis)
    rows = _supervision.page_rows(finding, diagnosis)
    return {
        "severity": finding.severity,
        "mended": mended,
        "tone": "good" if mended else finding.severity,
        "rule": visible(finding.rule, 60),
        "name": visible(finding.name, 120),
        "location": visible(place(finding, diagnosis.recipe), limits.text),
        "kind": finding.location.kind,
        "message": visible(finding.message, limits.text * 2),
        "accepted": accepted_words(finding, diagnosis),
        "evidence": [
            (visible(m.what, limits.text), shown(m.value, limits.text), visible(m.source, 200))
            for m in finding.evidence[: limits.rows]
        ],
        "hidden_evidence": max(len(finding.evidence) - limits.rows, 0),
        "rows": [_row(row, limits.tokens // 2) for row in rows],
        "proof_kind": finding.proof.kind,
        "proof": shorten(proof_words(finding.proof), limits.text),
        "fixes": [
            {
                "title": visible(fix.title, limits.text),
                "safety": fix.safety,
                "label": fix_label(fix),
                "words": fix_words(fix),
                "executed": execution_words(fix),
                "outcome": fix.executed.outcome,
                "tried": tried if (finding.rule, fix.title) in applied else "",
                "diff": fix_diff(fix, diagnosis.recipe),
                "patch": visible(fix.patch.name, 120) if fix.patch else "",
                "parameters": [
                    (visible(key, 80), shown(value, limits.text))
                    for key, value in (fix.patch.parameters if fix.patch else {}).items()
                ][:20],
            }
            for fix in offered(finding)[:10]
        ],
    }


def _line(finding: Finding) -> tuple[str, str, str]:
    return finding.severity, visible(finding.rule, 60), visible(finding.message, 200)


def _remaining(diagnosis: Diagnosis, limits: Limits) -> dict[str, Any] | None:
    if diagnosis.after is None or not diagnosis.remaining:
        return None
    findings = ordered(diagnosis.remaining)
    return {
        "tally": tally(findings),
        "findings": [_line(finding) for finding in findings[: limits.lines]],
    }


def _supervision_view(diagnosis: Diagnosis, limits: Limits) -> dict[str, Any] | None:
    found = diagnosis.supervision
    if found is None:
        return None
    return {
        "headline": _supervision.headline(found),
        "facts": _supervision.facts(found),
        "others": _supervision.others(found),
        "notes": [visible(note.text, limits.text) for note in found.notes[: limits.lines]],
        "bars": [_supervision.bar(row) for row in found.shown[:12]],
        "withheld": _supervision.withheld(found),
        "rows": [_row(row, limits.tokens) for row in _supervision.texts(found)],
    }


def _row(row: ShownRow, most: int) -> dict[str, Any]:
    """A row token by token, in runs that are supervised or not."""
    return {"words": _supervision.row_words(row), "runs": _supervision.runs(row, most)}


def _recipe(diagnosis: Diagnosis, limits: Limits) -> list[tuple[str, str, str, str]]:
    """Key, value, who set it, and the value after the fixes where that differs."""
    fixed = diagnosis.fixed_recipe
    before, rows = diagnosis.recipe.values, []
    for key, value, origin in recipe_rows(before, set_by(diagnosis))[:80]:
        rows.append([key, shorten(value, limits.text), origin, ""])
    if fixed is None:
        return [(row[0], row[1], row[2], row[3]) for row in rows]
    for index, key in enumerate(list(before)[:80]):
        if key not in fixed.values:
            rows[index][3] = "taken out"
        elif fixed.values[key] != before[key]:
            rows[index][3] = shorten(_recipe_value(fixed.values[key]), limits.text)
    for key in [key for key in fixed.values if key not in before][:40]:
        rows.append([visible(key, 80), "", "fix", shorten(_recipe_value(fixed.values[key]), 300)])
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def _recipe_value(value: Any) -> str:
    text: str = shown(value) if isinstance(value, (list, tuple)) else literal(value)
    return text


def _environment(diagnosis: Diagnosis, limits: Limits) -> list[tuple[str, str]]:
    rows: list[tuple[str, Any]] = []
    for key, value in diagnosis.environment.items():
        if isinstance(value, Mapping):
            rows += [(str(name), item) for name, item in value.items() if item is not None]
        else:
            rows.append((str(key), value))
    return [(visible(key, 80), shown(value, limits.text)) for key, value in rows[:60]]
