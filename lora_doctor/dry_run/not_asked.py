"""Which rules a dry run cannot ask, said beside its verdict: they have not passed."""

from __future__ import annotations

from collections.abc import Iterable

from lora_doctor.errors import Lack
from lora_doctor.results.diagnosis import Skipped
from lora_doctor.results.note import Note

#: What rules lack in a dry run, in words, and what asks them.
_LACKING: tuple[tuple[Lack, str, str], ...] = (
    ("weights", "need the real weights", "lora-doctor check MODEL --depth full"),
    ("texts", "need the texts", "lora-doctor check MODEL --data FILE"),
)


def not_asked(skipped: Iterable[Skipped]) -> list[Note]:
    """A note with the codes of these rules, and what asks them; none where all were asked."""
    every = list(skipped)
    told = []
    for lack, words, command in _LACKING:
        codes = sorted(one.rule for one in every if one.lacks == lack)
        if codes:
            told.append(f"{', '.join(codes)} {words} ({command})")
    words = f"rules that a dry run cannot check: {'; '.join(told)}"
    return [Note("not-proven", words)] if told else []
