"""How a program is started: words of its command line that stand in a file, and its environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_doctor.static.program.units import Span
from lora_doctor.static.program.values import Known, Unknown

if TYPE_CHECKING:
    from lora_doctor.static.place import Place


class PlacedWord(str):
    """A word of a command in a shell file.

    ``span``: where it is written. ``variable``: what only the shell knows of it; empty where the
    text is all of it. ``set_at``: where the value of ``--name=$VALUE`` is written, if that is
    elsewhere."""

    span: Span
    variable: str
    set_at: Span | None

    def __new__(
        cls, text: str, span: Span, variable: str = "", set_at: Span | None = None
    ) -> PlacedWord:
        word = super().__new__(cls, text)
        word.span, word.variable, word.set_at = span, variable, set_at
        return word

    def part(self, text: str) -> PlacedWord:
        """The part of it that is the value of ``--name=value``."""
        behind = len(self.span.text.partition("=")[2])
        span = Span(self.span.unit, self.span.end - behind, self.span.end)
        return PlacedWord(text, self.set_at or span, self.variable)


@dataclass(frozen=True)
class Start:
    """A command in a shell file that starts a program."""

    #: Where it stands.
    place: Place
    #: The variables that are set for it.
    environment: tuple[tuple[str, str], ...] = ()
    #: Variables that are set to what only the shell knows.
    unknown: tuple[str, ...] = ()
    #: The content of the shell file.
    data: bytes = field(default=b"", compare=False, repr=False)
    #: The words and the start that the shell file has with another content; ``None`` for one that
    #: does not start the program.
    reread: Callable[[bytes], tuple[tuple[str, ...], Start] | None] | None = field(
        default=None, compare=False, repr=False
    )


def value_of(word: str, value: object) -> Known | Unknown:
    """What a word says, with its place; ``value``: as the parser converts its text."""
    if not isinstance(word, PlacedWord):
        return Known(value)
    if word.variable:
        advice = f"set the variable {word.variable}" if word.variable.isidentifier() else ""
        return Unknown(word.span.text, word.span.place, advice, word.span)
    return Known(value, word.span)
