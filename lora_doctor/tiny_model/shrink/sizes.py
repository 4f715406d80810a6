"""The choices of one attempt to shrink a config, and what was changed by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


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
    #: What led to this attempt: entries that an objection names, a repair, smaller widths, or
    #: something that is tried without being asked for.
    step: Literal["first", "named", "repaired", "smaller", "other"] = "first"


@dataclass(frozen=True)
class Change:
    """One entry of a config that was changed: the config's path, the key, both values in short."""

    path: str
    key: str
    old: str
    new: str

    def __str__(self) -> str:
        where = f"{self.path}.{self.key}" if self.path else self.key
        return f"{where} {self.old} -> {self.new}"


@dataclass
class Changes:
    """`multiples`: whether some numbers of layers are multiples of another in the same config."""

    by_role: dict[str, list[Change]] = field(default_factory=dict)
    multiples: bool = False

    def note(self, role: str, path: str, key: str, old: Any, new: Any) -> None:
        self.by_role.setdefault(role, []).append(Change(path, key, _short(old), _short(new)))

    def steps(self) -> list[str]:
        return [f"{role}: {', '.join(map(str, items))}" for role, items in self.by_role.items()]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
