"""Dataclasses out of the JSON that was made of them, by their annotations."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

#: Which file of ``results/`` has the classes that others name in their fields and import for type
#: checkers only: a run at depth ``static`` has no value of them, and pays for none.
_HOMES = {
    "DryRun": "dry_run",
    "ErrorReport": "error_report",
    "MemoryPlan": "memory_plan",
    "Observations": "observations",
    "QuantizedUse": "quantized_use",
    "RenamedTensor": "injection",
    "Saving": "round_trip",
    "Structure": "structure",
    "Supervision": "supervision",
    "Verification": "verification",
}


class _ForTypeCheckers(dict[str, Any]):
    """Looks a name up where it is at home, when first asked."""

    def __missing__(self, name: str) -> Any:
        module = importlib.import_module(f"lora_doctor.results.{_HOMES[name]}")
        return self.setdefault(name, getattr(module, name))


#: Local names for ``get_type_hints``: those that modules import for type checkers only. A hub's
#: snapshot is not written.
FOR_TYPE_CHECKERS: dict[str, Any] = _ForTypeCheckers({"HubSnapshot": Any})
#: How JSON spells the numbers that it has no word for.
_NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity", "nan", "inf", "-inf"})


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """An instance: lists become tuples and mappings dataclasses where the fields say so; a class
    that has a ``from_json`` of its own is read by it.

    Keys that are no field are passed over; what is left out has its default.

    Raises:
        TypeError: the data are no mapping, or a field without a default is missing. Whether the
            values are of their fields' kinds is what :func:`mismatch` tells.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{cls.__name__}: is a {type(data).__name__}, not a mapping")
    kinds = _kinds(cls)  # type: ignore[arg-type] # mypy takes a class for unhashable
    return cls(**{name: _value(kinds[name], item) for name, item in data.items() if name in kinds})


def mismatch(instance: Any, path: str = "") -> str | None:
    """The path of the first value that is not what its field's annotation says, such as
    ``findings[0].severity``; ``None`` when all are."""
    kinds = _kinds(type(instance))  # type: ignore[arg-type] # as above
    for item in fields(instance):
        inner = f"{path}.{item.name}" if path else item.name
        found = _mismatch(kinds[item.name], getattr(instance, item.name), inner)
        if found is not None:
            return found
    return None


@cache
def _kinds(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, localns=FOR_TYPE_CHECKERS)
    names: Mapping[str, Any] = getattr(cls, "__dataclass_fields__", {})
    return {name: hints[name] for name in names}


def _value(kind: Any, value: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        kinds = [one for one in inner if one is not NoneType]
        return value if value is None or len(kinds) != 1 else _value(kinds[0], value)
    if kind is float and isinstance(value, str) and value in _NOT_FINITE:
        return float(value)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        own = getattr(kind, "from_json", None)
        return own(value) if own else from_json(kind, value)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        return tuple(_value(one, item) for one, item in zip(kinds, value, strict=True))
    if origin is Mapping and isinstance(value, Mapping):
        return {key: _value(inner[1], item) for key, item in value.items()}
    return value


def _mismatch(kind: Any, value: Any, path: str) -> str | None:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        found = [_mismatch(one, value, path) for one in inner]
        return None if None in found else found[0]
    if origin is Literal:
        return None if value in inner else path
    if origin is tuple and isinstance(value, tuple):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        pairs = [
            (one, item, f"{path}[{n}]")
            for n, (one, item) in enumerate(zip(kinds, value, strict=False))
        ]
        return _first(pairs) if len(kinds) == len(value) else path
    if origin is Mapping and isinstance(value, Mapping):
        return _first([(inner[1], item, f"{path}[{key!r}]") for key, item in value.items()])
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, kind):
        return mismatch(value, path)
    return None if _is_a(kind, value) else path


def _first(values: list[tuple[Any, Any, str]]) -> str | None:
    """The first mismatch of values with their kinds and paths."""
    return next(filter(None, (_mismatch(*one) for one in values)), None)


def _is_a(kind: Any, value: Any) -> bool:
    if kind is Any:
        return True
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else get_origin(kind) or kind)
