"""The verdict of now: headline, the sentence that it rests on, and the tone that it is shown in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_doctor.reports import _memory
from lora_doctor.reports._text import many, visible
from lora_doctor.reports._words import ordered, passed_words, tally, verdict_words
from lora_doctor.results.fingerprints import with_fingerprints

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.finding import Finding

Tone = Literal["good", "error", "warning", "info", "open"]


@dataclass(frozen=True)
class VerdictText:
    """``tone``: the severity of the worst that is left, ``good`` or ``open``."""

    tone: Tone
    headline: str
    explanation: str


def verdict_text(diagnosis: Diagnosis) -> VerdictText:
    """What holds now: of fixes that were written, what is left after them."""
    if diagnosis.written_to and diagnosis.after is not None:
        return _after_writing(diagnosis)
    headline, explanation = verdict_words(diagnosis)
    if diagnosis.verdict == "undetermined":
        return VerdictText("open", headline, explanation)
    if diagnosis.verdict == "findings":
        return VerdictText(ordered(diagnosis.findings)[0].severity, headline, explanation)
    small = _memory.fits_nowhere(diagnosis)
    if small:
        return VerdictText("warning", f"Trains, but {small}", f"{explanation} {_PLAN}")
    return VerdictText("good", headline, explanation)


_PLAN = "The contract was executed on a tiny model; the memory was counted at full size."


def _after_writing(diagnosis: Diagnosis) -> VerdictText:
    after = diagnosis.after
    assert after is not None  # `verdict_text` asks
    left = [finding for finding in diagnosis.remaining or () if finding.severity != "info"]
    answer = after.as_answer()
    mended = f"Written to {visible(diagnosis.written_to[0], 200)}: {_titles(diagnosis)}"
    found = f"Found before: {tally(diagnosis.findings)}." if diagnosis.findings else ""
    contract = f"The training contract was executed with it: {passed_words(after)}."
    if answer.outcome == "passed" and not left and diagnosis.undetermined is None:
        return _text("good", "Fixed: the recipe trains", mended, contract, found)
    if answer.outcome == "passed" and left:
        headline = f"Fixed in part: {tally(left)} {'remains' if len(left) == 1 else 'remain'}"
        return _text(_worst(left), headline, mended, contract, found)
    if answer.outcome == "failed":
        names = ", ".join(visible(check.name, 60) for check in after.failed_checks[:12])
        contract = f"The training contract still fails: {names or visible(after.reason, 300)}."
        return _text("error", "Not fixed: the recipe still fails", mended, contract, found)
    reason = diagnosis.undetermined or answer.reason
    return _text("open", "Fixes written, not proven", mended, f"{visible(reason, 600)}.", found)


def _text(tone: Tone, headline: str, *sentences: str) -> VerdictText:
    return VerdictText(tone, headline, " ".join(filter(None, sentences)))


def _worst(findings: list[Finding]) -> Tone:
    return ordered(findings)[0].severity


def _titles(diagnosis: Diagnosis) -> str:
    """What was mended: the codes of the rules with the titles of their fixes."""
    told = [
        f"{visible(item.rule, 60)}, {visible(item.fix.title, 160).rstrip('.')}"
        for item in diagnosis.applied[:4]
    ]
    more = len(diagnosis.applied) - len(told)
    if more:
        told.append(f"and {many(more, 'more fix', 'more fixes')}")
    return f"{'; '.join(told)}."


def is_mended(finding: Finding, diagnosis: Diagnosis) -> bool:
    """Whether it was found before the fixes that were written, and is no more."""
    if not diagnosis.written_to or diagnosis.remaining is None:
        return False
    left = {name for name, _ in with_fingerprints(diagnosis.remaining)}
    names = [name for name, one in with_fingerprints(diagnosis.findings) if one is finding]
    return not any(name in left for name in names)


#: What the command that comes next does, by its verb.
_NEXT = {
    "fix": "shows and tries the fixes",
    "fix --apply": "applies the fixes and proves them",
    "verify": "proves what was written",
    "check": "checks at a greater depth",
    "explain": "explains the rule",
    "dry-run": "runs the script with a tiny model",
}


def next_words(diagnosis: Diagnosis) -> str:
    """What the next command does; empty where there is none, or none that is known here."""
    words = diagnosis.next_command.split()
    verb = words[1] if len(words) > 1 else ""
    applied = f"{verb} --apply"
    return _NEXT.get(applied if "--apply" in words and applied in _NEXT else verb, "")
