"""Values made fit to be read, or to be written as JSON. What comes from strangers goes through
``visible`` first."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from lora_doctor.text import shorten, visible

__all__ = [
    "many",
    "memory",
    "number",
    "parameters",
    "plain",
    "seconds",
    "shorten",
    "shown",
    "visible",
]

_SURROGATE = re.compile("[\ud800-\udfff]")


def plain(value: Any) -> Any:
    """``value`` as strict JSON data.

    Keys become texts, tuples and sets (sorted) become lists. A number that JSON cannot write
    becomes the text ``NaN``, ``Infinity`` or ``-Infinity``; lone surrogates become ``?``; any
    other object becomes its text.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str):
        return _SURROGATE.sub("?", value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=lambda item: json.dumps(item))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(str(value))


def number(value: float) -> str:
    """A measured number: counts with thousands separators, others with four digits."""
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "NaN")
    return f"{value:.4g}"


def shown(value: Any, limit: int = 300, items: int = 12) -> str:
    """Any value of evidence or of a recipe, on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)) and not isinstance(value, Enum):
        return number(value)
    if isinstance(value, Mapping):
        pairs = [f"{visible(key, 80)}: {shown(item, 120, items)}" for key, item in value.items()]
        return shorten(_enumerated(pairs, items) or "{}", limit)
    if isinstance(value, (list, tuple, set, frozenset)):
        ordered = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return shorten(
            _enumerated([shown(item, 120, items) for item in ordered], items) or "[]", limit
        )
    return visible(value, limit) or "(empty)"


def _enumerated(parts: list[str], most: int) -> str:
    if len(parts) <= most + 1:
        return ", ".join(parts)
    return f"{', '.join(parts[:most])} … and {len(parts) - most:,} more"


def many(count: int, noun: str, plural: str | None = None) -> str:
    """``1 rule``, ``2 rules``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def parameters(count: int) -> str:
    """A number of parameters as people say it: ``3.82 B``."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def memory(size: int | None) -> str:
    """Bytes as people say it: ``1.2 GiB``."""
    if size is None:
        return "not measured"
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.3g} {unit}" if amount < 1000 else f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.3g} TiB"


def seconds(value: float | None) -> str:
    """A duration as people say it: ``850 ms``, ``2.3 s``, ``4 min 10 s``."""
    if value is None or not math.isfinite(value):
        return "not measured"
    if value < 0.0995:
        return f"{value * 1000:.2g} ms" if value < 0.00995 else f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"
