"""Where something is written: a file and a line, in a notebook a cell and its line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Between a notebook and the number of a cell.
CELL = ":cell "


@dataclass(frozen=True)
class Place:
    """A position in a file of the user's, for people: ``train.py:31``, ``a.ipynb:cell 4:3``."""

    #: The file, as the user named it; a cell of a notebook is ``notebook.ipynb:cell 4``.
    file: str
    #: Line of the file or of the cell, from 1; ``None`` where it is not known.
    line: int | None = None
    #: Column, from 1.
    column: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def inside(self) -> str:
        """The place for a sentence about the file: ``line 31``, ``cell 4, line 3``."""
        _, _, cell = self.file.partition(CELL)
        return f"cell {cell}, line {self.line}" if cell else f"line {self.line}"

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "line": self.line, "column": self.column}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Place:
        return cls(data["file"], data.get("line"), data.get("column"))
