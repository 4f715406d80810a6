"""Single values that a library takes without a word and then fails with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MisusedValue:
    """A value with which a few steps of training fail, and without which they do not."""

    #: Number of the value among those that were handed over.
    number: int
    #: Name of the class that took it.
    by: str
    #: Its package and release.
    release: str
    #: The type that the class declares, such as ``float``; empty where the value is of that type.
    declared: str
    #: What was being done: ``making``, ``adding the adapter``, ``training``.
    when: str
    #: Class of the exception; empty where nothing was raised, and no step was taken.
    kind: str
    #: Its message, on one line.
    message: str


@dataclass(frozen=True)
class MisusedValues:
    """What came of the values that were tried."""

    #: In the order of the values; empty where each of them works.
    found: tuple[MisusedValue, ...] = ()
    #: How many were tried: those of another type than declared, and those that cannot be.
    tried: int = 0
