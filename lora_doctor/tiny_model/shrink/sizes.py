"""The choices of one attempt to shrink a config, and what was changed by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

#: Where a choice comes from: the first one; smaller widths after a model that was too big; what
#: an error calls for; or a guess, where no error says what is wrong.
Origin = Literal["start", "smaller", "called for", "guess"]


@dataclass(frozen=True)
class Sizes:
    """The choices of one attempt."""

    #: The smallest width, in features; a multiple of 32.
    base: int = 64
    #: Layers that are left at least, where the config has as many.
    min_depth: int = 2
    #: Whether numbers of layers that are multiples of another one stay so.
    in_proportion: bool = False
    #: Patches per side of an image.
    grid: int = 4
    #: Roles and names of entries that keep the value of the config.
    keep_roles: frozenset[str] = frozenset()
    keep_keys: frozenset[str] = frozenset()
    #: Path of an entry and its value, whatever its role.
    overrides: tuple[tuple[str, Any], ...] = ()
    origin: Origin = "start"
    #: For the steps of the result; empty at the start.
    why: str = ""

    def with_overrides(self, overrides: Mapping[str, Any], why: str) -> Sizes:
        """The same with these overrides in the place of its own, as an error calls for."""
        entries = tuple(sorted(overrides.items(), key=lambda item: item[0]))
        return replace(self, overrides=entries, origin="called for", why=why)


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
