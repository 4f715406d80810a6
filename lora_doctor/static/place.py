"""Where something is written: a file, a line, and in a notebook a cell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A position in a file of the user's, for people: ``train.py:31``, ``a.ipynb:cell 4:3``."""

    #: Path of the file, as the user gave it.
    file: str
    #: Line of the file or of the cell, from 1.
    line: int
    #: Column, from 1; 0 where only the line is known.
    column: int = 0
    #: Number of the notebook's cell, from 1; ``None`` in every other file.
    cell: int | None = None

    def __str__(self) -> str:
        cell = f"cell {self.cell}:" if self.cell is not None else ""
        return f"{self.file}:{cell}{self.line}"

    @property
    def inside(self) -> str:
        """The place for a sentence about the file: ``line 31``, ``cell 4, line 3``."""
        cell = f"cell {self.cell}, " if self.cell is not None else ""
        return f"{cell}line {self.line}"
