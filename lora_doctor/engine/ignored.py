"""Findings that a comment in the user's own files accepts, and comments that accept nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lora_doctor.recipe.ignores import IgnoreComment, read_ignores
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Accepted, Diagnosis
from lora_doctor.results.finding import Finding
from lora_doctor.results.fingerprints import with_fingerprints
from lora_doctor.results.note import Note
from lora_doctor.static.place import CELL, Place


def with_ignored(
    diagnosis: Diagnosis, codes: Iterable[str], origins: Mapping[str, str] | None = None
) -> Diagnosis:
    """The diagnosis with what the comments of the user's files accept, and notes on comments that
    accept nothing.

    Only files that the recipe was read from are looked at: those of the model may be a stranger's.
    ``codes``: of all rules there are; empty where that is not known. ``origins``: key to
    ``FILE:LINE``, of a dry run.
    """
    lines = _Lines(diagnosis.recipe, origins or {})
    script = [diagnosis.model.name] if diagnosis.model.kind == "script" else []
    comments = _comments([*lines.files(), *script, diagnosis.model.script])
    if not comments:
        return diagnosis
    accepted, used = [], set()
    for name, finding in with_fingerprints(diagnosis.findings):
        for place in lines.of(finding):
            for number, comment in enumerate(comments):
                if _holds(comment, finding.rule, place):
                    used.add((number, finding.rule))
                    accepted.append(Accepted(name, "ignored", comment.reason, str(comment.place)))
    notes = [
        note
        for number, comment in enumerate(comments)
        for note in _without_effect(comment, number, used, diagnosis, frozenset(codes))
    ]
    first = {item.fingerprint: item for item in reversed((*diagnosis.accepted, *accepted))}
    return replace(
        diagnosis,
        accepted=tuple(reversed(first.values())),
        notes=(*diagnosis.notes, *(note for note in notes if note not in diagnosis.notes)),
    )


class _Lines:
    """Where the user's files say what a finding is about."""

    def __init__(self, recipe: Recipe, origins: Mapping[str, str]) -> None:
        self._recipe = recipe
        self._origins = {key: place for key, text in origins.items() if (place := _place(text))}

    def files(self) -> list[str]:
        recipe = self._recipe
        places = [*recipe.places.values(), *self._origins.values()]
        named = [str(recipe.file)] if recipe.file is not None else []
        if recipe.set_up is not None:
            named += recipe.set_up.files
            places += recipe.set_up.places.values()
        if recipe.written is not None:
            places += recipe.written.parts.values()
        return [*named, *(place.file for place in places)]

    def of(self, finding: Finding) -> list[Place]:
        location = finding.location
        keys = [location.path] if location.kind == "recipe" else []
        keys += [edit.key for fix in finding.fixes for edit in fix.edits]
        found = [place for key in keys for place in self._of_key(key)]
        if location.kind == "file" and location.line is not None:
            found.append(Place(location.path, location.line))
        written = _place(finding.written)
        return [*found, written] if written is not None else found

    def _of_key(self, key: str) -> list[Place]:
        set_up = self._recipe.set_up
        found = (
            self._recipe.place_of(key),
            self._origins.get(key),
            set_up.places.get(key) if set_up is not None else None,
        )
        return [place for place in found if place is not None]


def _place(text: str) -> Place | None:
    """``FILE:LINE`` as a place; ``None`` for any other text."""
    file, _, line = text.rpartition(":")
    return Place(file, int(line)) if file and line.isascii() and line.isdigit() else None


def _comments(files: Iterable[str]) -> list[IgnoreComment]:
    """Of each file once, whatever it is called."""
    names = {os.path.abspath(name): name for name in (file.partition(CELL)[0] for file in files)
             if name and os.path.isfile(name)}  # fmt: skip
    return [comment for name in names.values() for comment in read_ignores(name)]


def _holds(comment: IgnoreComment, rule: str, place: Place) -> bool:
    return (
        not comment.wrong
        and rule in comment.codes
        and place.line in comment.lines
        and _same(comment.place.file, place.file)
    )


def _same(one: str, other: str) -> bool:
    (first, _, cell), (second, _, other_cell) = one.partition(CELL), other.partition(CELL)
    return cell == other_cell and os.path.abspath(first) == os.path.abspath(second)


def _without_effect(
    comment: IgnoreComment,
    number: int,
    used: set[tuple[int, str]],
    diagnosis: Diagnosis,
    codes: frozenset[str],
) -> list[Note]:
    """What is to be said of a comment that accepts nothing, of each code; nothing of a rule that
    was not asked or could not answer."""
    if comment.wrong:
        return [Note("ignore", f"{comment.place}: this comment ignores nothing: {comment.wrong}")]
    notes = []
    for code in comment.codes:
        why = _why_unused(code, diagnosis.findings, diagnosis.passed, codes)
        if why and (number, code) not in used:
            notes.append(Note("ignore", f"{comment.place}: ignore[{code}] ignores nothing: {why}"))
    return notes


def _why_unused(
    code: str, findings: Sequence[Finding], passed: Sequence[str], codes: frozenset[str]
) -> str:
    if codes and code not in codes:
        return "there is no such rule"
    found = next((finding for finding in findings if finding.rule == code), None)
    if found is not None:
        at = found.written or str(found.location)
        return (
            f"{code} is found at {at}; put the comment there, or the code into "
            "[tool.lora-doctor.ignore]"
        )
    return f"{code} finds nothing any more; take it out" if code in passed else ""
