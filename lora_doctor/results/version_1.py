"""A diagnosis of schema version 1, in the layout of version 2.

Version 1 wrote notes and a few other things as sentences; version 2 writes what they mean. This is
the one place where such a sentence is taken apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Fields of version 1 that have another name since.
_RENAMED = {"own_adapters": "built_in_adapters"}


def from_version_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a version 1 file as version 2 has it.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is not what version 1 wrote.
    """
    result: dict[str, Any] = _renamed(data)
    return {**result, "schema_version": "2"}


def _renamed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_RENAMED.get(key, key): _renamed(item) for key, item in value.items()}
    return [_renamed(item) for item in value] if isinstance(value, list) else value
