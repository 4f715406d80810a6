"""A program's text in units: the file of a script, the code cells of a notebook."""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_doctor.errors import NotPythonError
from lora_doctor.static.place import Place
from lora_doctor.static.python_source import parse_python

if TYPE_CHECKING:
    import libcst as cst

_LINE = re.compile(r"\r\n|\r|\n")
#: Cell magics whose cell is Python of this process.
_PYTHON_MAGICS = ("capture", "time", "timeit", "prun", "memit")
_MAGIC = re.compile(r"(?P<indent>[ \t]*)(?P<mark>[%!]|\?)(?P<rest>[^\r\n]*)")
_ASSIGNED = re.compile(r"(?P<head>[ \t]*[\w, ]+=[ \t]*)(?P<mark>[%!])(?P<rest>[^\r\n=][^\r\n]*)")
_HELP = re.compile(r"[ \t]*[\w.]+\?{1,2}[ \t]*")


@dataclass(eq=False)
class Unit:
    """A file, or a code cell of a notebook."""

    #: The file.
    file: str
    #: Its text, as Python reads it; line ends as they are.
    text: str
    #: Number of the cell, from 1, counted over all cells; ``None`` for a file.
    cell: int | None = None
    #: Whether it is the program itself, and not a file that it imports or reads.
    editable: bool = True
    #: Of the nodes that were asked for: those of a loop are asked for in each round.
    _spans: dict[cst.CSTNode, Span] = field(default_factory=dict, init=False, repr=False)

    @functools.cached_property
    def python(self) -> str:
        """The text with ``%`` and ``!`` lines blanked, character for character."""
        return _without_magics(self.text) if self.cell is not None else self.text

    @functools.cached_property
    def module(self) -> cst.Module:
        """The syntax tree.

        Raises:
            NotPythonError, LimitError: it is none, or too long.
        """
        import libcst as cst

        parse_python(self.python, self.name)
        try:
            return cst.parse_module(self.python)
        except cst.ParserSyntaxError as error:
            raise NotPythonError(f"not Python that libcst knows: {error.message}") from None
        except (RecursionError, ValueError):
            raise NotPythonError("nested too deeply to be read") from None

    @functools.cached_property
    def _ranges(self) -> Mapping[cst.CSTNode, Any]:
        from libcst.metadata import MetadataWrapper, PositionProvider

        return MetadataWrapper(self.module, unsafe_skip_copy=True).resolve(PositionProvider)

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [0, *(match.end() for match in _LINE.finditer(self.text))]

    @property
    def name(self) -> str:
        """How a message calls it."""
        short = self.file.rpartition("/")[2]
        return short if self.cell is None else f"{short}, cell {self.cell}"

    def offset(self, line: int, column: int) -> int:
        """Place in the text of a line from 1 and a column from 0."""
        return self._starts[line - 1] + column

    def span(self, node: cst.CSTNode) -> Span:
        """Where the node stands in the text, without the parentheses around it."""
        span = self._spans.get(node)
        if span is None:
            found = self._ranges[node]
            start = self.offset(found.start.line, found.start.column)
            span = Span(self, start, self.offset(found.end.line, found.end.column))
            self._spans[node] = span
        return span

    def place_at(self, offset: int) -> Place:
        """Line and column of a place in the text."""
        line = bisect_right(self._starts, offset)
        cell = f":cell {self.cell}" if self.cell is not None else ""
        return Place(f"{self.file}{cell}", line, offset - self._starts[line - 1] + 1)

    def line_bounds(self, offset: int) -> tuple[int, int]:
        """Begin of the line of a place, and its end behind the line break."""
        line = bisect_right(self._starts, offset)
        end = self._starts[line] if line < len(self._starts) else len(self.text)
        return self._starts[line - 1], end

    @property
    def newline(self) -> str:
        """The line end that the text uses first."""
        found = _LINE.search(self.text)
        return found[0] if found else "\n"


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``end`` of the text of a unit (a file or a cell)."""

    unit: Unit = field(compare=False, repr=False)
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.unit.text[self.start : self.end]

    @property
    def place(self) -> Place:
        return self.unit.place_at(self.start)


def _without_magics(text: str) -> str:
    """IPython's own lines as Python that does nothing, each character at its place."""
    first = text.lstrip()
    magic = re.match(r"%%(\w+)", first)
    if magic and magic[1] not in _PYTHON_MAGICS:
        return _LINE.sub(lambda found: found[0], re.sub(r"[^\r\n]", " ", text))
    lines = re.split(r"(\r\n|\r|\n)", text)
    continued = False
    for number in range(0, len(lines), 2):
        line = lines[number]
        blanked = _blanked(line) if not continued else " " * len(line)
        # A shell command goes on after a backslash.
        continued = blanked is not line and line.rstrip().endswith("\\")
        lines[number] = blanked
    return "".join(lines)


def _blanked(line: str) -> str:
    if line.lstrip().startswith("%%"):
        return " " * len(line)
    found = _MAGIC.fullmatch(line)
    if found:
        return _filled(found["indent"], "pass", len(line))
    found = _ASSIGNED.fullmatch(line)
    if found:
        return _filled(found["head"], "None", len(line))
    return _filled("", "pass", len(line)) if _HELP.fullmatch(line) else line


def _filled(head: str, word: str, length: int) -> str:
    """``head`` and ``word`` in so many characters; a comment where the word has no room."""
    if len(head) + len(word) <= length:
        return (head + word).ljust(length)
    return (head + "0").ljust(length) if len(head) < length else head[:length]


def magic_lines(text: str) -> Sequence[tuple[int, str]]:
    """The ``%`` and ``!`` lines of a cell with their numbers from 1, without the mark."""
    found = []
    for number, line in enumerate(_LINE.split(text), 1):
        match = _MAGIC.fullmatch(line) or _ASSIGNED.fullmatch(line)
        if match and match["mark"] in "%!":
            found.append((number, match["rest"].lstrip("%").strip()))
    return found
