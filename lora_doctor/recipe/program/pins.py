"""The releases that a program asks for, held against what is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from lora_doctor.limits import PYTHON_BYTES
from lora_doctor.static.installed.signatures import installed_version
from lora_doctor.static.place import Place
from lora_doctor.static.program.program import Pin, Program

#: Whose releases decide what a set-up means.
_PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "sentence-transformers",
)  # fmt: skip
_REQUIREMENT = re.compile(r"\s*([A-Za-z][\w.-]*)(?:\[[^\]]*\])?\s*([<>=!~][^\s;#]*)")


def other_releases(program: Program) -> tuple[str, ...]:
    """A sentence for each pin that the installed release does not meet."""
    return tuple(
        f"{pin.place} asks for {pin.package}{pin.specifier}; checked with the installed {version}"
        for pin, version in unmet(program)
    )


def unmet(program: Program) -> Iterator[tuple[Pin, str]]:
    """The pins of the program, and of the requirements.txt beside it, that are not met here, each
    with the installed release."""
    for pin in (*program.pins, *_requirements(program)):
        version = installed_version(pin.package) if pin.package in _PACKAGES else None
        try:
            if version is not None and version not in SpecifierSet(pin.specifier, prereleases=True):
                yield pin, version
        except InvalidSpecifier:
            continue


def _requirements(program: Program) -> Iterator[Pin]:
    file = program.path.parent / "requirements.txt"
    try:
        if not file.is_file() or file.stat().st_size > PYTHON_BYTES:
            return
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        found = _REQUIREMENT.match(line)
        if found:
            name = found[1].lower().replace("_", "-")
            yield Pin(name, found[2], Place(str(file), number))
