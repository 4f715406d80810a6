"""Who sees the texts of rows of training data: a choice of the user's."""

from __future__ import annotations

from typing import Literal

#: ``people``: terminal and page. ``all``: machine formats, too. ``none``: nobody, they are not
#: kept.
Samples = Literal["people", "all", "none"]
