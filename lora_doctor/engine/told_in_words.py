"""From a failure told in words, without a message, to the rules whose pages tell the same.

Each sentence of a rule's page that says what happens, and those of ``told_as``, are compared with
the text: by the concepts that both have (``vocabulary``) and, less, by the words. What few rules
have counts more. No more is claimed than that the words are alike: the answer shows them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from lora_doctor.engine.rule import Rule
from lora_doctor.engine.vocabulary import concepts_in, named, stems_in, tells_of_no_failure

#: From this likeness on a rule is named, and from this on it is said that it may be that one; set
#: on texts that docs/explain.md counts.
_NAMED, _MAYBE = 2.8, 1.7
#: A text of some words that is so near to a sentence (1 is the same) is that one, however short.
_SAME, _FEW = 0.97, 3
#: A rule that is less like the text than this share of the likeliest is not named beside it.
_BESIDE = 0.85
#: A concept counts so much, and a word so much.
_CONCEPT, _STEM = 2.0, 0.6
#: How much a long text or sentence loses: 1 is the cosine, by which the shortest always wins.
_LENGTH = 0.7
#: Without something that goes wrong, and something with which; and in a part of the text alone.
_UNCLEAR, _IN_PART = 0.6, 0.9
#: A rule that is known to be told in words: it has ``descriptions`` or ``told_as``.
_OFTEN_TOLD = 1.08
_SHOWN = 5

_SECTION = re.compile(r"^## (.+)\n", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?:;])\s+|\n+")


@dataclass(frozen=True)
class Told:
    """A rule of which a sentence is like a text."""

    rule: type[Rule]
    #: The sentence.
    sentence: str
    #: The words of the text that are alike, what counts most first.
    words: tuple[str, ...]
    #: How much alike, a number above 0.
    likeness: float
    #: Whether that is enough to name the rule.
    is_named: bool


@dataclass(frozen=True)
class _Sentence:
    rule: type[Rule]
    text: str
    terms: frozenset[str]


class _Sentences:
    """The sentences of all rules."""

    def __init__(self, rules: Sequence[type[Rule]]) -> None:
        self.all = [sentence for rule in rules for sentence in _told_by(rule)]
        self._rules = len(set(rules))
        self._with = Counter(
            term for _, term in {(one.rule, term) for one in self.all for term in one.terms}
        )

    def weight(self, term: str) -> float:
        """How much a term counts: the fewer rules have it, the more; half of it where none has."""
        with_it = self._with[term]
        rarity = math.log((self._rules + 1) / (with_it + 1)) if with_it else self._unknown
        return rarity * (_CONCEPT if term.isupper() else _STEM)

    @property
    def _unknown(self) -> float:
        return math.log(self._rules + 1) / 2

    def square(self, terms: Iterable[str]) -> float:
        return sum(self.weight(term) ** 2 for term in terms)


def told_in_words(text: str, rules: Sequence[type[Rule]]) -> list[Told]:
    """The rules that tell the same as a short text, the likeliest first; none for a question, for a
    report that all is well and for another program than one that trains."""
    if tells_of_no_failure(text):
        return []
    known = _sentences(tuple(rules))
    best: dict[type[Rule], Told] = {}
    for part, share in _parts(text):
        for told in _alike(part, share, known):
            before = best.get(told.rule)
            if before is None or told.likeness > before.likeness:
                best[told.rule] = told
    found = sorted(best.values(), key=lambda told: (-told.likeness, told.rule.code))
    return [told for told in found if told.likeness >= _BESIDE * found[0].likeness]


def _alike(part: str, share: float, known: _Sentences) -> Iterator[Told]:
    """The sentences that are like a text, or a part of it."""
    shown = {**stems_in(part), **concepts_in(part)}
    meant = {term for term in shown if term.isupper()}
    length = known.square(shown)
    for sentence in known.all:
        alike = sentence.terms & shown.keys()
        common = alike & meant
        if not common:
            continue
        lengths = length * known.square(sentence.terms)
        likeness = share * known.square(alike) / lengths ** (_LENGTH / 2)
        if not _is_clear(common, meant):
            likeness *= _UNCLEAR
        if sentence.rule.descriptions or sentence.rule.told_as:
            likeness *= _OFTEN_TOLD
        if likeness < _MAYBE and share < 1:
            continue
        by_weight = sorted(alike, key=lambda term: (-known.weight(term), term))
        words = _apart([shown[term] for term in by_weight])
        if share == 1 and len(words) >= _FEW:
            same = known.square(alike) / math.sqrt(lengths)
            likeness = max(likeness, _NAMED * same / _SAME if same >= _SAME else 0.0)
        if likeness >= _MAYBE:
            yield Told(sentence.rule, sentence.text, words, likeness, likeness >= _NAMED)


def _apart(words: Iterable[str]) -> tuple[str, ...]:
    """The first of some words, without those that stand inside others."""
    kept: list[str] = []
    for word in words:
        if not any(word in other for other in kept):
            kept = [other for other in kept if other not in word] + [word]
    return tuple(kept[:_SHOWN])


def _is_clear(common: Collection[str], meant: Collection[str]) -> bool:
    """Whether a text and a sentence share something that goes wrong, and what it is about."""
    subjects = named("subject") & set(common)
    return bool(
        named("clear") & set(common)
        or (named("trouble") & set(common) and subjects)
        or (named("vague") & set(meant) and len(subjects) > 1)
    )


@cache
def _sentences(rules: tuple[type[Rule], ...]) -> _Sentences:
    return _Sentences(rules)


def _told_by(rule: type[Rule]) -> Iterator[_Sentence]:
    """What a rule says of the failure: in users' words, in short, and what happens, sentence by
    sentence and together."""
    first, *sections = _SECTION.split(rule.documentation())
    happens = dict(zip(sections[::2], sections[1::2], strict=True)).get("What happens", "")
    short = [_sentence(rule, rule.summary)]
    introduced = [_sentence(rule, one) for one in _SENTENCE.split(_on_one_line(first)) if one]
    happening = [_sentence(rule, one) for one in _SENTENCE.split(_on_one_line(happens)) if one]
    yield from (_sentence(rule, one) for one in rule.told_as)
    yield from short
    yield from happening
    yield _together(introduced or short)
    yield _together(short + happening)


def _sentence(rule: type[Rule], text: str) -> _Sentence:
    return _Sentence(rule, text, frozenset({*stems_in(text), *concepts_in(text)}))


def _together(sentences: Sequence[_Sentence]) -> _Sentence:
    return _Sentence(
        sentences[0].rule,
        " ".join(one.text for one in sentences),
        frozenset().union(*(one.terms for one in sentences)),
    )


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _parts(text: str) -> Iterator[tuple[str, float]]:
    """A text, its sentences and each two in a row, with how much each counts."""
    yield text, 1.0
    sentences = [one for one in _SENTENCE.split(text) if len(one.split()) > 3]
    if len(sentences) > 1:
        pairs = (f"{one} {other}" for one, other in pairwise(sentences))
        yield from ((part, _IN_PART) for part in (*sentences, *pairs))
