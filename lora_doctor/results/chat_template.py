"""What the installed transformers makes of the chat template in the model's folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatTemplate:
    """The template, tried on short conversations."""

    #: The file that it is in.
    file: str
    #: The class of the exception that ends each of them; empty where one is formatted, or where
    #: the template itself refuses them.
    error: str = ""
    #: Its message.
    message: str = ""
    #: The line of the template that it names; ``None`` where it names none.
    line: int | None = None
