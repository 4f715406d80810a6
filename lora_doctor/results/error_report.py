"""An exception that was seen while a model was built or run, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorReport:
    """An exception seen in a child process."""

    #: Class of the exception.
    type: str
    #: Its message.
    message: str
    #: ``file:line`` of the deepest frame.
    where: str = ""
    #: The traceback; may be empty.
    traceback: str = ""
    #: ``class.attribute`` where code asked the installed transformers for an attribute that it does
    #: not have.
    lacks: str = ""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}".strip(": ")
