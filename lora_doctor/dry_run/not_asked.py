"""Which rules a dry run cannot ask, said beside its verdict: they have not passed."""

from __future__ import annotations

from collections.abc import Iterable

from lora_doctor.results.diagnosis import Skipped
from lora_doctor.results.dry_run import NEEDS_WEIGHTS, ONLY_BATCHES
from lora_doctor.results.note import Note

#: How the reason of a rule begins, what it lacks, and what asks it.
_LACKING = (
    (NEEDS_WEIGHTS, "need the real weights", "lora-doctor check MODEL --depth full"),
    (ONLY_BATCHES, "need the texts", "lora-doctor check MODEL --data FILE"),
)


def not_asked(skipped: Iterable[Skipped]) -> list[Note]:
    """A note with the codes of these rules, and what asks them; none where all were asked."""
    every = list(skipped)
    told = []
    for begins, lack, command in _LACKING:
        codes = sorted(one.rule for one in every if one.reason.startswith(begins))
        if codes:
            told.append(f"{', '.join(codes)} {lack} ({command})")
    return (
        [Note("not-proven", f"rules that a dry run cannot ask: {'; '.join(told)}")] if told else []
    )
