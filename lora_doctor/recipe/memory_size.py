"""``24GB`` and its spellings, as bytes."""

from __future__ import annotations

import math
import re

_UNITS = {"": 1 << 30, "G": 1 << 30, "M": 1 << 20, "T": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([GMT]?)(?:i?B)?\s*", re.IGNORECASE)


def parse_memory(text: object) -> int:
    """Bytes of ``24GB``, ``24 GiB``, ``24`` or ``24000MB``.

    A GB is 1024 MB here, as it is for the makers of cards: one of 24 GB has 24 GiB.

    Raises:
        ValueError: it is none of these, or not above 0.
    """
    match = _SIZE.fullmatch(str(text)) if not isinstance(text, bool) else None
    if match is None:
        raise ValueError("is a size of memory such as 24GB")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if not math.isfinite(size) or size < 1 << 20:
        raise ValueError("is a size of memory such as 24GB")
    return int(size)
