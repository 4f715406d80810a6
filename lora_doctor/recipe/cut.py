"""Where a command of a shell file ends before its last options, or with a word too long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """Where a command ends too early."""

    #: Line of the file, from 1.
    line: int
    #: What ends it: the end of a sentence that begins with "the line".
    why: str
    #: What to do about it.
    remedy: str
    #: The options that the command is started without, as they are written.
    options: tuple[str, ...]
    #: First of the characters that would have to be blank for the command to go on.
    start: int = 0
    #: Behind the last of them; as ``start`` where they are read as blank anyway.
    end: int = 0
    #: Whether the command is given what stands behind the backslash as an argument.
    stray: bool = False
    #: Whether nothing is missing, but the last word of the command has a carriage return behind it.
    returned: bool = False
