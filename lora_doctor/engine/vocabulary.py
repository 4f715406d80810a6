"""The words in which people tell of a failure: phrases that mean the same are one concept.

They stand in ``vocabulary.toml`` beside this file. Which rule a text is about is decided by what it
has in common with a rule's sentences, in ``told_in_words``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from lora_doctor.engine.tables import table

_NO_FAILURE, _ANOTHER = "no failure", "ANOTHER PROGRAM"
#: What a phrase may begin or end with, by name.
_NOT = r"(?:not|never|cannot|no longer)\s+(?:\w+\s+){0,3}?"
_ZERO = r"(?:0(?:\.0+)?(?!\.?\d)|zeros?\b)"
_START = r"^\W*(?:\[\w+\]\W*)?"


@dataclass(frozen=True)
class Concept:
    """Phrases that mean the same."""

    #: In capitals, so that it is no stem of a word.
    name: str
    #: As ``vocabulary.toml`` says: ``trouble``, ``clear``, ``vague``, ``subject`` or ``common``.
    kind: str
    #: Its phrases, from the beginning of a word on, in text as ``_plain`` leaves it.
    pattern: re.Pattern[str]


def concepts() -> tuple[Concept, ...]:
    """Every concept of the file, those aside that mean no failure."""
    return _vocabulary()[0]


@cache
def _vocabulary() -> tuple[tuple[Concept, ...], tuple[Concept, ...]]:
    """The concepts, and those that mean no failure."""
    every = [
        Concept(name.upper(), entry["kind"], _pattern(entry["phrases"]))
        for name, entry in table("vocabulary.toml").items()
    ]
    return (
        tuple(concept for concept in every if concept.kind != _NO_FAILURE),
        tuple(concept for concept in every if concept.kind == _NO_FAILURE),
    )


@cache
def named(*kinds: str) -> frozenset[str]:
    """The names of the concepts of some kinds."""
    return frozenset(concept.name for concept in concepts() if concept.kind in kinds)


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    written = "|".join(phrases)
    for name, meaning in (("{not}", _NOT), ("{zero}", _ZERO), ("{start}", _START)):
        written = written.replace(name, meaning)
    return re.compile(rf"(?<!\w)(?:{written})")


_BEGIN = re.compile(r"(?<!\w)\w")
_WORD = re.compile(r"[a-z][a-z0-9]*(?:[_.\-][a-z0-9]+)*")
_PARTS = re.compile(r"[_.\-]")
#: Words without a meaning of their own.
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        "a about above after again against all also am an and any are as at be because been being "
        "below between both but by can could did do does doing don done down during each etc even "
        "few for from further get gets got had has have having he her here his how however if in "
        "into is it its just know let like lot made make makes many may might more most much must "
        "my need needs no nor not now of off on once one only or other our out over own per same "
        "seem seems shall she should since so some still such than that the their them then there "
        "therefore these they thing things this those though through to too two under up us use "
        "used uses using very via want was way we well were what when where which while who whom "
        "why will with within would you your",
    )
)
#: Ends of words, longest first, and what stands for them in the stem.
_ENDS = (
    ("isation", "iz"), ("ization", "iz"), ("ations", "at"), ("ation", "at"), ("ments", ""),
    ("ings", ""), ("ment", ""), ("edly", ""), ("ing", ""), ("ies", "y"), ("ied", "y"),
    ("ers", "er"), ("ed", ""), ("es", ""), ("ly", ""), ("s", ""), ("e", ""),
)  # fmt: skip


def concepts_in(text: str) -> dict[str, str]:
    """The names of the concepts in a text, each with the words that show it."""
    text = _plain(text)
    begins = [hit.start() for hit in _BEGIN.finditer(text)]
    found = {}
    for concept in concepts():
        # All of a vocabulary at each character of all pages would take seconds.
        hit = next(filter(None, (concept.pattern.match(text, place) for place in begins)), None)
        if hit:
            found[concept.name] = " ".join(hit[0].split())
    return found


def tells_of_no_failure(text: str) -> bool:
    """Whether a text is a question, the report that all is well, or about another program."""
    return any(concept.pattern.search(_plain(text)) for concept in _vocabulary()[1])


def names_another_program(text: str) -> bool:
    """Whether a text is about a program that does not train with PEFT."""
    return any(
        concept.pattern.search(_plain(text))
        for concept in _vocabulary()[1]
        if concept.name == _ANOTHER
    )


def stems_in(text: str) -> dict[str, str]:
    """The stems of a text's words, each with the word."""
    found: dict[str, str] = {}
    for word in _WORD.findall(_plain(text)):
        for part in dict.fromkeys((word, *_PARTS.split(word))):
            if len(part) > 1 and part not in _EMPTY:
                found.setdefault(_stem(part), part)
    return found


def _plain(text: str) -> str:
    """In lower case, without an apostrophe in a negation."""
    return text.lower().replace("’", "'").replace("n't", " not")


@cache
def _stem(word: str) -> str:
    for end, instead in _ENDS:
        if word.endswith(end) and len(word) - len(end) >= 3 and not word.endswith("ss"):
            word = word[: -len(end)] + instead
            break
    doubled = len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz"
    return word[:-1] if doubled else word
