"""From an error message to the rules that know it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_doctor.engine.rule import Rule
from lora_doctor.limits import CLOCK, LOG, LOG_CHARACTERS, bounded, step

#: The text is searched in pieces of so many characters, each with half of the one before it: the
#: regular expression of a symptom may take time by the square of a piece's length. No message that
#: a symptom describes is longer than half a piece.
_PIECE = 6_000
#: Of a longer word (a tensor, base64) only the ends are kept: ``\w+`` in a symptom is tried at each
#: of its characters.
_WORD = 400


@dataclass(frozen=True)
class Match:
    """A rule whose symptom occurs in a text."""

    rule: type[Rule]
    line: str
    position: int


def find_by_message(text: str, rules: Sequence[type[Rule]]) -> list[Match]:
    """Rules whose symptoms occur in the text, the one nearest to its end first: in a traceback
    the last line is the exception. A longer match wins over a shorter one in the same place.

    Of a long text the last ``LOG_CHARACTERS`` are searched.

    Raises:
        LimitError: the text is one that the regular expressions take too long for.
    """
    flat = " ".join(_shortened(word) for word in text[-LOG_CHARACTERS:].split())
    pieces = [(start, start + _PIECE) for start in range(0, max(len(flat), 1), _PIECE // 2)]
    found: list[tuple[int, int, Match]] = []
    with bounded(LOG):
        for rule in rules:
            hits = (
                hit
                for symptom in rule.symptoms
                for hit in _occurrences(re.compile(symptom.pattern), flat, pieces)
            )
            best = max(hits, key=_rank, default=None)
            if best is not None:
                line = best[0][:200]
                found.append((*_rank(best), Match(rule, line, best.end())))
    found.sort(key=lambda item: item[:2], reverse=True)
    return [match for _, _, match in found]


def _rank(hit: re.Match[str]) -> tuple[int, int]:
    return hit.end(), hit.end() - hit.start()


def _occurrences(
    pattern: re.Pattern[str], text: str, pieces: Sequence[tuple[int, int]]
) -> Iterator[re.Match[str]]:
    for start, end in pieces:
        step(CLOCK)
        yield from pattern.finditer(text, start, end)


def _shortened(word: str) -> str:
    half = _WORD // 2
    return word if len(word) <= _WORD else f"{word[:half]}…{word[-half:]}"
