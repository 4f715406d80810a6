"""Releases that files beside a set-up ask for: requirements, project files, lock files, conda
environments, and the pip lines of a Dockerfile."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import PYTHON_BYTES
from lora_doctor.static.piece import read_bytes
from lora_doctor.static.place import Place
from lora_doctor.static.program.program import Pin

#: A lock file names every file of every package.
_BYTES = 8 * PYTHON_BYTES
#: Folders above a script in which the root of its repository is looked for.
_NEAR = 4
_NAME = r"(?P<name>[A-Za-z][\w.-]*)(?:\[[^\]\n]*\])?"
_VERSION = r"[\w.*+!-]+"
_COMPARES = r"(?:===?|[<>]=?|[~!]=)"
_SPECIFIER = (
    rf"(?P<version>{_COMPARES}[ \t]*{_VERSION}"
    rf"(?:[ \t]*,[ \t]*{_COMPARES}[ \t]*{_VERSION})*)"
)
#: ``transformers==4.44.2`` on a line of its own, with a dash (conda) or in quotes (TOML).
_LINE = re.compile(rf"^[ \t]*(?:-[ \t]+)?[\"']?{_NAME}[ \t]*{_SPECIFIER}", re.MULTILINE)
#: ``dependencies = ["a==1", "b>=2"]``: several on one line.
_QUOTED = re.compile(rf"[\"']{_NAME}[ \t]*{_SPECIFIER}[ \t]*(?:;[^\"'\n]*)?[\"']")
#: ``transformers = "4.44.2"``, ``"==4.44.2"``, ``"^4.44"`` of Poetry and Pipenv.
_ASSIGNED = re.compile(
    rf"^[ \t]*[\"']?{_NAME}[\"']?[ \t]*=[ \t]*(?:\{{[^}}\n]*version[ \t]*=[ \t]*)?"
    r"[\"'](?P<version>[\^~=<>!\d][^\"'\n]*)[\"']",
    re.MULTILINE,
)
_LOCKED = re.compile(r'^name = "(?P<name>[\w.-]+)"\r?\nversion = "(?P<version>[\w.+!-]+)"', re.M)
#: ``- transformers=4.44.2`` of conda.
_CONDA = re.compile(rf"^[ \t]*-[ \t]+{_NAME}[ \t]*=[ \t]*(?P<version>\d[\w.*]*)", re.MULTILINE)
_PIP = re.compile(r"\bpip3?[ \t]+install\b(?:[^\n\\&;|]|\\\r?\n|\\[^\n])*")
_WORD = re.compile(
    rf"(?<=[\s\"']){_NAME}(?P<version>{_COMPARES}{_VERSION}(?:,{_COMPARES}{_VERSION})*)"
)


def repository_of(folder: Path) -> int:
    """How many folders above the root of the repository is; 0 where none is near."""
    places = [folder, *list(folder.parents)[:_NEAR]]
    return next((n for n, place in enumerate(places) if (place / ".git").exists()), 0)


def pins_beside(folder: Path, above: int) -> tuple[Pin, ...]:
    """Of the nearest folder that has files with requirements, up to the root of the repository or
    ``above`` folders up. A lock file says what is installed; the others count where none does."""
    for place in [folder, *list(folder.parents)[:above]]:
        found: list[Pin] = []
        for pattern, read in _READERS:
            for file in sorted(place.glob(pattern)):
                new = list(_pins_of(file, read)) if file.is_file() else []
                locked = {pin.package for pin in found if pin.specifier.startswith("==")}
                found += [pin for pin in new if pin.package not in locked]
        if found or (place / ".git").exists():
            return tuple(found)
    return ()


def _pins_of(file: Path, read: Callable[[str], Iterator[tuple[str, str, int]]]) -> Iterator[Pin]:
    try:
        text = read_bytes(file, _BYTES).decode("utf-8", "replace")
    except EvidenceError:
        return  # a file beside the set-up is nobody's input
    shown = os.path.relpath(file)
    for name, specifier, start in read(text):
        line = text.count("\n", 0, start) + 1
        yield Pin(re.sub(r"[-_.]+", "-", name).lower(), specifier, Place(shown, line))


_Found = Iterator[tuple[str, str, int]]


def _of(pattern: re.Pattern[str]) -> Callable[[str], _Found]:
    def read(text: str) -> _Found:
        for match in pattern.finditer(text):
            yield match["name"], _plain(match["version"]), match.start("name")

    return read


def _of_project(text: str) -> _Found:
    """``pyproject.toml``: PEP 621's lists, and Poetry's table."""
    seen = set()
    tables = re.split(r"^\[", text, flags=re.MULTILINE)
    start = 0
    for table in tables:
        poetry = table.startswith(("tool.poetry.", "packages]", "dev-packages]"))
        for pattern in (_ASSIGNED,) if poetry else (_QUOTED,):
            for match in pattern.finditer(table):
                found = match["name"], _plain(match["version"]), start + match.start("name")
                if found[:2] not in seen:
                    seen.add(found[:2])
                    yield found
        start += len(table) + 1


def _of_locks(text: str) -> _Found:
    for match in _LOCKED.finditer(text):
        yield match["name"], f"=={match['version']}", match.start("name")


def _of_pipenv_lock(text: str) -> _Found:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return
    for section in ("default", "develop"):
        packages = data.get(section) if isinstance(data, dict) else None
        for name, entry in packages.items() if isinstance(packages, dict) else ():
            version = entry.get("version") if isinstance(entry, dict) else None
            if isinstance(version, str):
                yield name, version, max(text.find(f'"{name}"'), 0)


def _of_conda(text: str) -> _Found:
    yield from _of(_LINE)(text)
    for match in _CONDA.finditer(text):
        version = match["version"]
        exact = version if version.endswith("*") or version.count(".") > 1 else f"{version}.*"
        yield match["name"], f"=={exact}", match.start("name")


def _of_pip_lines(text: str) -> _Found:
    for line in _PIP.finditer(text):
        for match in _WORD.finditer(line[0]):
            version = _plain(match["version"].rstrip("\\"))
            yield match["name"], version, line.start() + match.start("name")


def _plain(version: str) -> str:
    """A version as a specifier: Poetry's ``^4.44`` allows all of the same major, or of the same
    minor below 1; a bare one is exact."""
    version = "".join(version.split())
    if version[:1] == "^":
        numbers = version[1:].split(".")
        kept = next((n for n, one in enumerate(numbers) if one != "0"), len(numbers) - 1)
        if numbers[kept].isdecimal():
            upper = [*numbers[:kept], str(int(numbers[kept]) + 1)]
            return f">={version[1:]},<{'.'.join(upper)}"
    if version[:1].isdigit():
        return f"=={version}"
    return f"~={version[1:]}" if re.fullmatch(r"~\d+\.[\d.]+", version) else version


#: Files by name, those that say most first.
_READERS: tuple[tuple[str, Callable[[str], _Found]], ...] = (
    ("uv.lock", _of_locks), ("poetry.lock", _of_locks), ("Pipfile.lock", _of_pipenv_lock),
    ("requirements*.txt", _of(_LINE)), ("requirements/*.txt", _of(_LINE)),
    ("pyproject.toml", _of_project), ("Pipfile", _of_project),
    ("environment*.y*ml", _of_conda), ("conda*.y*ml", _of_conda),
    ("Dockerfile*", _of_pip_lines), ("*.Dockerfile", _of_pip_lines),
)  # fmt: skip
