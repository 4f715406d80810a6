"""The choices of one attempt to shrink a config, and what was changed by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """The choices of one attempt."""

    base: int = 64
    min_depth: int = 2
    in_proportion: bool = False
    grid: int = 4
    keep_roles: frozenset[str] = frozenset()
    keep_keys: frozenset[str] = frozenset()
    overrides: tuple[tuple[str, Any], ...] = ()
    why: str = ""


@dataclass
class Changes:
    """`multiples`: whether some numbers of layers are multiples of another in the same config."""

    by_role: dict[str, list[str]] = field(default_factory=dict)
    multiples: bool = False

    def note(self, role: str, path: str, key: str, old: Any, new: Any) -> None:
        where = f"{path}.{key}" if path else key
        self.by_role.setdefault(role, []).append(f"{where} {_short(old)} -> {_short(new)}")

    def steps(self) -> list[str]:
        return [f"{role}: {', '.join(entries)}" for role, entries in self.by_role.items()]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
