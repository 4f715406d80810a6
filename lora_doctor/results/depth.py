"""How far evidence may go: from files alone to the real weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    pass


Depth = Literal["static", "meta", "tiny", "full"]


DEPTHS: tuple[Depth, ...] = ("static", "meta", "tiny", "full")
