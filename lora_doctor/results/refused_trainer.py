"""What the class of a trainer says to the model, the adapter and the arguments of a program."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AskedTrainer:
    """A trainer that was made on a tiny model, with rows of each kind that it takes.

    ``message`` is empty where it took everything.
    """

    #: Its package and release.
    release: str
    #: How many kinds of rows it was made with.
    kinds: int
    #: Class of the exception, and its message, the same for each kind of rows.
    kind: str = ""
    message: str = ""
    #: Where it is raised: a file from the package on, with the line.
    raised_at: str = ""
