"""Who sees the texts of rows of training data: a choice of the user's."""

from __future__ import annotations

from typing import Literal

#: ``people``: the terminal. ``all``: every format; also those that are passed on. ``none``: nobody,
#: they are not kept.
Samples = Literal["people", "all", "none"]
