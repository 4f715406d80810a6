"""Values of the user's as plain data, without what could be secret."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

_LONGEST_TEXT = 400
_LONGEST_LIST = 200
_DEEPEST = 4


def plain(value: Any, depth: int = 0) -> Any:
    """What JSON can hold: numbers, texts, lists and mappings as they are, dtypes and enums by name,
    anything else by its class."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Enum):
        return plain(value.value, depth)
    if isinstance(value, str):
        return value[:_LONGEST_TEXT]
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if depth < _DEEPEST and isinstance(value, (set, frozenset)):
        return sorted((plain(item, depth + 1) for item in value), key=str)
    if depth < _DEEPEST and isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value[:_LONGEST_LIST]]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if name in ("torch.dtype", "torch.device"):
        return str(value).removeprefix("torch.")
    return f"<{type(value).__qualname__}>"
