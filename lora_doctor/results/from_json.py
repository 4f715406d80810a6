"""Dataclasses out of the JSON that ``dataclasses.asdict`` made of them, by their annotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """An instance: lists become tuples and mappings dataclasses where the fields say so.

    Keys that are no field are passed over; what is left out has its default.

    Raises:
        TypeError: a field without a default is missing, or a value is of another kind than its
            field; the data come from a process in which strangers' code runs.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{cls.__name__}: is a {type(data).__name__}, not a mapping")
    kinds = _kinds(cls)  # type: ignore[arg-type] # mypy takes a class for unhashable
    return cls(**{name: _value(kinds[name], item) for name, item in data.items() if name in kinds})


@cache
def _kinds(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    names: Mapping[str, Any] = getattr(cls, "__dataclass_fields__", {})
    return {name: hints[name] for name in names}


def _value(kind: Any, value: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        kinds = [one for one in inner if one is not NoneType]
        return value if value is None or len(kinds) != 1 else _value(kinds[0], value)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return from_json(kind, value)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        return tuple(_value(one, item) for one, item in zip(kinds, value, strict=True))
    if origin is Mapping and isinstance(value, Mapping):
        return {key: _value(inner[1], item) for key, item in value.items()}
    _check(kind, origin, value)
    return value


#: Floats that JSON cannot write come as these.
_NOT_FINITE = ("nan", "inf", "-inf")


def _check(kind: Any, origin: Any, value: Any) -> None:
    """Raises TypeError when the value cannot be of this kind."""
    if origin is Literal:
        fits = value in get_args(kind)
    elif kind in (int, float):
        fits = (isinstance(value, (int, float)) and not isinstance(value, bool)) or (
            kind is float and value in _NOT_FINITE
        )
    elif kind in (str, bool):
        fits = isinstance(value, kind)
    else:
        # Plain values have been seen to; the rest is what JSON has no word for, or anything.
        fits = not (is_dataclass(kind) or origin in (tuple, Mapping))
    if not fits:
        raise TypeError(f"{value!r:.60} is no {getattr(kind, '__name__', kind)}")
