"""From an error message to the rules that know it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lora_doctor.engine.rule import Rule

#: A pasted log is searched from its end, where the exception stands.
_MAX_CHARACTERS = 200_000


@dataclass(frozen=True)
class Match:
    """A rule whose symptom occurs in a text."""

    rule: type[Rule]
    line: str
    position: int


def find_by_message(text: str, rules: Sequence[type[Rule]]) -> list[Match]:
    """Rules whose symptoms occur in the text, the one nearest to its end first: in a traceback
    the last line is the exception. A longer match wins over a shorter one in the same place."""
    text = text[-_MAX_CHARACTERS:]
    flat = " ".join(text.split())
    found: list[tuple[int, int, Match]] = []
    for rule in rules:
        best: tuple[int, int, Match] | None = None
        for symptom in rule.symptoms:
            for hit in re.finditer(symptom.pattern, flat):
                match = Match(rule, flat[hit.start() : hit.end()][:200], hit.end())
                candidate = (hit.end(), hit.end() - hit.start(), match)
                best = max(best, candidate, key=lambda item: item[:2]) if best else candidate
        if best:
            found.append(best)
    found.sort(key=lambda item: item[:2], reverse=True)
    return [match for _, _, match in found]
