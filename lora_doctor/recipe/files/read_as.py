"""How a framework's entry is read: what YAML, JSON and a command line make of one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_TRUE = frozenset({"true", "yes", "on", "y", "t", "1"})
_FALSE = frozenset({"false", "no", "off", "n", "f", "0"})


def boolean(value: Any) -> bool:
    """``True``, and what YAML 1.1 and a command line write for it."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError("is true or false")


def not_boolean(value: Any) -> bool:
    """The opposite, for an entry that turns something off."""
    return not boolean(value)


def number(value: Any) -> Any:
    """A number, also where YAML 1.1 reads a text (``1e-4``)."""
    if isinstance(value, str):
        try:
            found = float(value)
        except ValueError:
            raise ValueError("is a number") from None
        return int(found) if found.is_integer() and "e" not in value.lower() else found
    return value


def integer(value: Any) -> Any:
    """A whole number."""
    found = number(value)
    return int(found) if isinstance(found, float) and found.is_integer() else found


def positive(value: Any) -> Any:
    """A whole number; -1 and 0 mean that there is no limit."""
    found = integer(value)
    return None if isinstance(found, int) and found <= 0 else found


def text(value: Any) -> Any:
    return None if value in ("", "none", "None") else value


def names(value: Any) -> list[str] | None:
    """Names in a list, or separated by commas in a text."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list):
        raise ValueError("is a list of names")
    found = [str(name).strip() for name in value if str(name).strip()]
    return found or None


def joined(value: Any) -> str:
    """Names separated by commas."""
    if not isinstance(value, list):
        raise ValueError("is a list of names separated by commas")
    return ",".join(value)


def only(allowed: Any, result: Any = True) -> Callable[[Any], Any]:
    """``result`` where the entry has this value, else nothing."""
    return lambda value: result if str(value).strip().lower() == str(allowed).lower() else None


def word_of(words: dict[str, str]) -> Callable[[Any], Any]:
    """The recipe's word for one of the framework's; one that it does not have stays."""

    def read(value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"is one of {', '.join(words)}")
        return words.get(str(value), value) or None

    return read


def word_for(words: dict[str, str]) -> Callable[[Any], Any]:
    """The framework's word for one of the recipe's."""

    def write(value: Any) -> str:
        found = [name for name, meant in words.items() if meant == value]
        if not found:
            raise ValueError(f"is one of {', '.join(words)}")
        return found[0]

    return write
