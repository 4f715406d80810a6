"""The page that a report for the terminal is written on, by ``rich``."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from lora_doctor.text import visible_lines

#: Where the encoding has not these, equal in width so that tables stay straight.
_FALLBACKS = str.maketrans(
    {
        "✓": "+",
        "✗": "x",
        "⟦": "[",
        "⟧": "]",
        "·": "-",
        "…": "~",
        "→": ">",
        "×": "x",
        "─": "-",
        "–": "-",
    }
)
#: Below so many columns a table breaks its words.
_NARROW = 72
#: Columns that the labels ``proof``, ``fix`` and ``more`` take.
MARGIN = 9


class Page:
    """A rich console that writes into a string, and looks at no terminal and no environment."""

    def __init__(self, color: bool, width: int) -> None:
        from rich.console import Console

        self._buffer = io.StringIO()
        self._color = color
        self.console = Console(
            file=self._buffer, width=width, force_terminal=color, no_color=not color,
            color_system="standard" if color else None, legacy_windows=False,
            highlight=False, markup=False, emoji=False, _environ={},
        )  # fmt: skip

    @property
    def narrow(self) -> bool:
        """Whether tables are too narrow to be read, so that lines are better."""
        return self.console.width < _NARROW

    def line(self, *parts: str | tuple[str, str], indent: int = 0, wrap: bool = True) -> None:
        """A paragraph of texts and ``(text, style)`` pairs."""
        from rich.padding import Padding
        from rich.text import Text

        text = Text.assemble(*map(_visible, parts), overflow="fold")
        if wrap:
            self.console.print(Padding(text, (0, 0, 0, indent)) if indent else text)
        else:
            self.console.print(Text(" " * indent) + text, soft_wrap=True)

    def labelled(self, label: str, *parts: str | tuple[str, str]) -> None:
        """A paragraph beside a label in the left margin."""
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=0, pad_edge=False)
        grid.add_column(width=MARGIN, no_wrap=True)
        grid.add_column(overflow="fold", max_width=self.console.width - MARGIN)
        text = Text.assemble(*map(_visible, parts), overflow="fold")
        grid.add_row(Text(f"  {label}", "dim"), text)
        self.console.print(grid)

    def gap(self) -> None:
        self.console.print()

    def table(
        self, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]], ratios: tuple[int, ...],
        indent: int = 2,
    ) -> None:  # fmt: skip
        """A table without lines; a cell is a text or a ``(text, style)`` pair."""
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for title, ratio in zip(header, ratios, strict=True):
            table.add_column(
                title, overflow="fold", max_width=max(self.console.width * ratio // 100, 8)
            )
        for row in rows:
            cells = map(_visible, row)
            table.add_row(
                *(Text(*cell) if isinstance(cell, tuple) else Text(cell) for cell in cells)
            )
        self.console.print(Padding(table, (0, 0, 0, indent)))

    def text(self) -> str:
        text = self._buffer.getvalue()
        if self._color:
            return text
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def _visible(part: str | tuple[str, str]) -> str | tuple[str, str]:
    """The last gate before colours come in: also what nobody made visible before."""
    if isinstance(part, tuple):
        return visible_lines(part[0]), part[1]
    return visible_lines(part)


def encodable(text: str, encoding: str) -> str:
    """The text in characters that this encoding has."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_FALLBACKS)
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text
