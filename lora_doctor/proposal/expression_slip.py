"""The slip in a regular expression for ``target_modules`` that matches no layer.

Names in a list are compared with the model's, one by one. Of ``.*\\.(q|v)_prj`` no part is a name,
so the expression as a whole is asked: with which letter more or less it matches layers.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from lora_doctor.proposal.expression_ends import expression_ends
from lora_doctor.proposal.targets import intended, offered_layers

if TYPE_CHECKING:
    from lora_doctor.results.structure import ModuleGroup, Structure

#: An expression that is longer is none that a person looks through for a letter.
_LONGEST = 300
_LETTERS = frozenset(f"{string.ascii_letters}_")
#: Words of an expression as they stand there; a letter behind a backslash is no letter.
_WORD = re.compile(r"(?<![\\\w])(?:(?<!\\)\w)+")


def mended_expression(structure: Structure, expression: str) -> str | None:
    """The expression without its slip: words that are the model's but for the order of their
    letters or one of them, or one such letter anywhere. ``None`` where that gives no layers, or
    layers that are not meant to be trained, or one of several expressions."""
    if len(expression) > _LONGEST:
        return None
    layers = offered_layers(structure)
    by_words = _by_words(structure, expression)
    found: dict[frozenset[str], str] = {}
    for candidate in [by_words] if by_words != expression else _one_letter(expression, layers):
        matched = _matched(structure, candidate)
        if matched and matched <= {group.pattern for group in layers} and _whole(candidate, layers):
            found.setdefault(frozenset(matched), candidate)
    return next(iter(found.values())) if len(found) == 1 else None


def _by_words(structure: Structure, expression: str) -> str:
    """With each word that names no part of the model, and can only mean one, set right."""
    parts = {part for group in structure.groups for part in group.pattern.split(".")}

    def meant(found: re.Match[str]) -> str:
        word = found[0]
        return word if word in parts else intended(word, parts) or word

    return _WORD.sub(meant, expression)


def _one_letter(expression: str, layers: Collection[ModuleGroup]) -> Iterator[str]:
    letters = sorted(_LETTERS.intersection("".join(group.pattern for group in layers)))
    for at in range(len(expression) + 1):
        before, after = expression[:at], expression[at:]
        if before.endswith("\\"):
            continue
        if not _LETTERS.isdisjoint(before[-1:] + after[:1]):
            yield from (before + letter + after for letter in letters)
        if _LETTERS.issuperset(after[:1]):
            yield before + after[1:]
        if len(after) > 1 and _LETTERS.issuperset(after[:2]):
            yield before + after[1] + after[0] + after[2:]


def _matched(structure: Structure, expression: str) -> set[str]:
    """The groups of which the expression takes a module, as PEFT does: by the whole path."""
    try:
        pattern = re.compile(expression)
    except re.error:
        return set()
    return {
        group.pattern
        for group in structure.groups
        if any(pattern.fullmatch(path) for path in group.examples)
    }


def _whole(expression: str, layers: Collection[ModuleGroup]) -> bool:
    """Whether every name in which it can end is one of a layer: else a second slip is left."""
    leaves = {group.leaf for group in layers}
    return leaves.issuperset(expression_ends(expression))
