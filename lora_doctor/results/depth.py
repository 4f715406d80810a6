"""How far evidence may go: from files alone to the real weights."""

from __future__ import annotations

from typing import Literal, get_args

Depth = Literal["static", "meta", "tiny", "full"]
DEPTHS: tuple[Depth, ...] = get_args(Depth)

#: Rounds of optimizer steps at `tiny` and `full`, where no number is asked for.
STEPS = 3
