"""Which arguments the classes of transformers, PEFT and TRL take in releases that are not
installed: a table that ``tools/api_tables.py`` read from the sources in their wheels."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from lora_doctor.static.piece import parse_json

_TABLES = Path(__file__).parent / "api_tables"


@dataclass(frozen=True)
class Releases:
    """The releases of a package that were read, and the arguments that not all of them take."""

    package: str
    releases: tuple[Version, ...]
    #: Class to argument to the runs of releases (first and last, by their number here) that take
    #: it; under ``""`` the runs that have the class.
    classes: Mapping[str, Mapping[str, Sequence[Sequence[int]]]]

    def takes(self, name: str, argument: str, specifier: str) -> bool | None:
        """Whether a class takes an argument in the releases that a specifier allows: ``None`` where
        that differs between them, or no release was read that says it."""
        known = self.classes.get(name, {})
        runs = known.get(argument)
        if runs is None:
            return None
        answers = {
            _within(runs, number) if _within(known[""], number) else None
            for number in self._numbers(specifier)
        }
        return answers.pop() if len(answers) == 1 else None

    def changing(self, name: str, specifier: str) -> list[str]:
        """The arguments that the class takes in all of these releases and not in all others."""
        names = [one for one in self.classes.get(name, {}) if one]
        return [one for one in names if self.takes(name, one, specifier)]

    def around(self, specifier: str) -> list[str]:
        """The releases that were read and that speak for a specifier."""
        return [str(self.releases[number]) for number in self._numbers(specifier)]

    def _numbers(self, specifier: str) -> list[int]:
        """The numbers of the releases that were read and speak for a specifier: those that it
        allows; of one release that was not read, the two beside it."""
        try:
            allowed = SpecifierSet(specifier, prereleases=True)
        except InvalidSpecifier:
            return []
        found = [n for n, one in enumerate(self.releases) if one in allowed]
        exact = [one for one in allowed if one.operator == "==" and "*" not in one.version]
        if found or not exact:
            return found
        place = bisect_left(self.releases, Version(exact[0].version))
        return [place - 1, place] if 0 < place < len(self.releases) else []


def _within(runs: Sequence[Sequence[int]], number: int) -> bool:
    return any(first <= number <= last for first, last in runs)


def table_path(package: str) -> Path:
    """The table of a package."""
    return _TABLES / f"{package}.json"


@functools.cache
def releases_of(package: str) -> Releases | None:
    """The releases that were read of a package; ``None`` without a table."""
    path = table_path(package)
    if not path.is_file():
        return None
    data: dict[str, Any] = parse_json(path.read_bytes(), path.name)
    versions = tuple(map(Version, data["releases"]))
    return Releases(package, versions, data["classes"])
