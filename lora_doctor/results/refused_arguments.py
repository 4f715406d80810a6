"""What the classes of the Trainer's arguments, and a framework's parser, say of the values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Values that the code which takes them refuses."""

    #: Number of the call in the program; -1 of the set-up of a framework.
    number: int
    #: What refused them: ``TrainingArguments``, or the framework.
    by: str
    #: Its package and release.
    release: str
    #: Class of the exception.
    kind: str
    #: Its message, on one line.
    message: str


@dataclass(frozen=True)
class AskedArguments:
    """What was asked, and what was refused."""

    #: In the order of the program; empty where nothing was refused.
    refusals: tuple[Refusal, ...] = ()
    #: How many calls and set-ups were asked.
    asked: int = 0
