"""Values as JSON has them, so that every later stage can carry them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from lora_doctor.errors import InputError

#: No recipe nests deeper (``layer_replication`` and quantization configs have 3 levels).
_MAX_DEPTH = 12
_MAX_INTEGER = 1 << 63


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """The value with enums as their values, and tuples and sets (sorted) as lists.

    Raises:
        InputError: a date, bytes, a key that is no text, a number or nesting beyond all sense, or
            text that no encoding can write.
    """
    if depth > _MAX_DEPTH:
        raise InputError(f"{where}: is nested too deeply to be a recipe")
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return _integer(value, where)
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [plain(item, where, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return _mapping(value, where, depth)
    raise InputError(
        f"{where}: a {type(value).__name__} is not a value of a recipe; put it in quotes if it is "
        "a string"
    )


def _integer(value: int, where: str) -> int:
    if abs(value) >= _MAX_INTEGER:
        raise InputError(f"{where}: a number with more than 18 digits is not a value of a recipe")
    return int(value)


def _text(value: str, where: str) -> str:
    try:  # an astral character that was escaped as two halves becomes one
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise InputError(
            f"{where}: has half of a surrogate pair, which is not valid text"
        ) from None


def _mapping(value: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{where}: key {key!r:.60} is not a string; put it in quotes")
    result = {}
    for key, item in value.items():
        inner = where if depth else f"{where}: {key!r:.60}"
        result[_text(key, where)] = plain(item, inner, depth + 1)
    return result
