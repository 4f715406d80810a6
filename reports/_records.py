"""Findings as the formats of other programs want them: a file, a line, a level, a fingerprint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lora_doctor.reports._text import visible
from lora_doctor.reports._words import offered, open_words, place
from lora_doctor.results.finding import SEVERITIES
from lora_doctor.results.fingerprints import with_fingerprints

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Accepted, Diagnosis
    from lora_doctor.results.finding import Finding

#: What stands in the place of a rule's code where a question stayed open.
UNDETERMINED = "undetermined"
Level = Literal["error", "warning", "info"]
_TEXT = 1000


@dataclass(frozen=True)
class Record:
    """A finding, or the question that stayed open (``rule`` is then ``undetermined``).

    ``file``: with slashes, relative to the working directory where it lies below it; empty where
    the finding is in no file. ``line``: from 1; ``None`` where it is not known. ``where``: of what
    the finding is, in words: a module, a key of the recipe, something of the environment.
    """

    rule: str
    name: str
    level: Level
    message: str
    file: str
    line: int | None
    where: str
    fingerprint: str
    fix: str


def records(diagnosis: Diagnosis) -> list[Record]:
    """The worst first, the open question last: an error where the depth that was asked for was not
    reached, else worth knowing. Without what was accepted."""
    made = [_record(finding, name, diagnosis) for name, finding in not_accepted(diagnosis)]
    if diagnosis.verdict == "undetermined" or diagnosis.undetermined is not None:
        made.append(_open_question(diagnosis))
    return made


def not_accepted(diagnosis: Diagnosis) -> list[tuple[str, Finding]]:
    """Findings with their fingerprints, the worst first, without those that were accepted."""
    accepted = {item.fingerprint for item in diagnosis.accepted}
    named = [pair for pair in with_fingerprints(diagnosis.findings) if pair[0] not in accepted]
    return sorted(named, key=lambda pair: SEVERITIES.index(pair[1].severity))


def accepted_records(diagnosis: Diagnosis) -> list[tuple[Record, Accepted]]:
    """The findings that a baseline or an ignore has accepted, each with that."""
    items = {item.fingerprint: item for item in reversed(diagnosis.accepted)}
    return [
        (_record(finding, name, diagnosis), items[name])
        for name, finding in with_fingerprints(diagnosis.findings)
        if name in items
    ]


def remarks(diagnosis: Diagnosis) -> list[str]:
    """What is to be said of the ignores and of the baseline themselves, and of what was not asked
    for."""
    kinds = ("ignore", "baseline", "not-asked")
    return [visible(note.text, _TEXT) for note in diagnosis.notes if note.kind in kinds]


def set_up(diagnosis: Diagnosis) -> str:
    """What was checked, in a few words."""
    return visible(diagnosis.model, 300)


def _record(finding: Finding, fingerprint: str, diagnosis: Diagnosis) -> Record:
    file, line = _file(finding, diagnosis)
    fix = next(iter(offered(finding)), None)
    return Record(
        visible(finding.rule),
        visible(finding.name),
        finding.severity,
        visible(finding.message, _TEXT),
        file,
        line,
        visible(place(finding, diagnosis.recipe), 300),
        fingerprint,
        visible(fix.title, 300) if fix is not None else "",
    )


def _open_question(diagnosis: Diagnosis) -> Record:
    return Record(
        UNDETERMINED,
        UNDETERMINED,
        "info" if diagnosis.undetermined is None else "error",
        visible(open_words(diagnosis), _TEXT),
        recipe_file(diagnosis),
        None,
        set_up(diagnosis),
        UNDETERMINED,
        "",
    )


def _file(finding: Finding, diagnosis: Diagnosis) -> tuple[str, int | None]:
    location = finding.location
    if location.kind == "file":
        return _relative(location.path), location.line
    written = diagnosis.recipe.places.get(location.path) if location.kind == "recipe" else None
    if written is not None:
        return _relative(written.file), written.line
    return recipe_file(diagnosis), None


def recipe_file(diagnosis: Diagnosis) -> str:
    """The file that holds the set-up: what a finding about a key or a module is reported for."""
    if diagnosis.recipe.file is not None:
        return _relative(str(diagnosis.recipe.file))
    name = diagnosis.model.name
    return _relative(name) if name and os.path.isfile(name) else ""


def _relative(path: str) -> str:
    """Relative where it lies below the working directory, as the programs that read this expect."""
    try:
        inside = Path(path).absolute().relative_to(Path.cwd())
    except (ValueError, OSError):
        return visible(Path(path).as_posix(), _TEXT)
    return visible(inside.as_posix(), _TEXT)
