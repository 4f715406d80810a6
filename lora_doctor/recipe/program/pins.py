"""The releases that a program asks for, held against what is installed."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from lora_doctor.recipe.pinned import pins_beside, repository_of
from lora_doctor.static.installed.signatures import installed_version
from lora_doctor.static.program.program import Pin, Program

#: Whose releases decide what a set-up means.
_PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets",
    "sentence-transformers",
)  # fmt: skip


def other_releases(program: Program) -> tuple[str, ...]:
    """A sentence for each pin that the installed release does not meet."""
    return tuple(
        f"{pin.place} asks for {pin.package}{pin.specifier}; checked with the installed {version}"
        for pin, version in unmet(program)
    )


def pinned_otherwise(program: Program) -> frozenset[str]:
    """The packages, by the names under which they are imported, of which the program asks for
    another release than the installed one."""
    return frozenset(pin.package.replace("-", "_") for pin, _ in unmet(program))


def unmet(program: Program) -> Iterator[tuple[Pin, str]]:
    """The pins of the program, and of the files with requirements beside it, that are not met here,
    each with the installed release."""
    folder = program.path.resolve().parent
    for pin in (*program.pins, *pins_beside(folder, repository_of(folder))):
        version = installed_version(pin.package) if pin.package in _PACKAGES else None
        try:
            if version is not None and version not in SpecifierSet(pin.specifier, prereleases=True):
                yield pin, version
        except InvalidSpecifier:
            continue
