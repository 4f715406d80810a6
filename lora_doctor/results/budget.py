"""Budgets: what a team asserts of the numbers of a run, and how they came out. Only data."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.errors import InputError
from lora_doctor.recipe.gpus import find_gpu
from lora_doctor.recipe.memory_size import parse_memory
from lora_doctor.results.finding import Severity
from lora_doctor.text import gib

Unit = Literal["bytes", "share", "count"]
#: Name to unit and to what is counted.
NUMBERS: Mapping[str, tuple[Unit, str]] = {
    "peak-memory": ("bytes", "memory of training on one GPU"),
    "trainable-share": ("share", "share of the parameters that train"),
    "adapted-share": ("share", "share of the linear layers, without heads, that have an adapter"),
    "supervised-tokens": ("count", "tokens that the loss sees, in the rows examined"),
    "supervised-share": ("share", "share of the tokens that the loss sees"),
    "rows-cut": ("share", "share of the rows examined that are longer than max_length"),
}
_LEVELS: Mapping[str, Severity] = {"warn": "warning", "error": "error"}
_KEYS = ("min", "max", "level")


@dataclass(frozen=True)
class Budget:
    """What is asserted of one number."""

    #: Of the number: a key of :data:`NUMBERS`.
    name: str
    #: ``bytes``; ``share``: from 0 to 1; ``count``.
    unit: Unit
    #: It is to be no less; ``None`` without a lower limit.
    least: float | None
    #: It is to be no more; ``None`` without an upper limit.
    most: float | None
    #: Severity of a finding where it is not kept.
    level: Severity
    #: The card that the upper limit is the memory of; empty where that is a number.
    gpu: str = ""

    def words(self) -> str:
        """``at most 2%``, ``at least 90%``, ``at most 22.1 GiB (l4)``."""
        limits = [("at least", self.least), ("at most", self.most)]
        told = [f"{word} {amount(limit, self.unit)}" for word, limit in limits if limit is not None]
        return " and ".join(told) + (f" ({self.gpu})" if self.gpu else "")


@dataclass(frozen=True)
class BudgetCheck:
    """A budget and the number that it is held against."""

    #: What is asserted.
    budget: Budget
    #: ``kept``, ``broken``; ``unsure``: the limit lies between the margins of the number;
    #: ``unmeasured``: there is no number.
    outcome: Literal["kept", "broken", "unsure", "unmeasured"]
    #: The number; ``None`` where it could not be measured.
    value: float | None = None
    #: What it is made of, or why there is none.
    detail: str = ""

    def words(self) -> str:
        """The number and its limit: ``0.4%, allowed: at most 2%``."""
        return f"{self.amount()}, allowed: {self.budget.words()}"

    def amount(self) -> str:
        """The number with its unit."""
        return amount(self.value, self.budget.unit) if self.value is not None else "not measured"


def amount(value: float, unit: Unit) -> str:
    """A number of this unit for people."""
    if unit == "bytes":
        return gib(int(value))
    return f"{100 * value:.3g}%" if unit == "share" else f"{int(value):,}"


def held_against(budget: Budget, value: float, low: float, high: float, detail: str) -> BudgetCheck:
    """How the budget comes out for a number that lies between ``low`` and ``high``."""
    least = budget.least if budget.least is not None else -math.inf
    most = budget.most if budget.most is not None else math.inf
    surely = least <= low and high <= most
    outcome = "kept" if surely else "broken" if high < least or low > most else "unsure"
    return BudgetCheck(budget, outcome, value, detail)  # type: ignore[arg-type]


def read_budgets(table: Mapping[str, Any] | None, where: str) -> tuple[Budget, ...]:
    """The budgets of a configuration: ``{"trainable-share": {"max": 0.02, "level": "warn"}}``.

    Raises:
        InputError: a name, a key or a value is none; one line that begins with ``where``.
    """
    if table is not None and not isinstance(table, Mapping):
        raise InputError(f"{where}: budgets is not a table; write [budgets] with a line for each")
    return tuple(_budget(name, entry, f"{where}: budgets") for name, entry in (table or {}).items())


def _budget(name: str, entry: Any, where: str) -> Budget:
    _check_known(name, NUMBERS, where)
    where = f"{where}.{name}"
    if not isinstance(entry, Mapping):
        raise InputError(f'{where}: is not a table, such as {{max = 0.02, level = "warn"}}')
    for key in entry:
        _check_known(key, _KEYS, where)
    level = entry.get("level", "error")
    if level not in _LEVELS:
        raise InputError(f"{where}.level: expected one of {', '.join(_LEVELS)}")
    unit = NUMBERS[name][0]
    found = dict(_limits(entry, unit, where))
    if not found:
        raise InputError(f"{where}: give min, max or both")
    least, most = found.get("min"), found.get("max")
    if least is not None and most is not None and least > most:
        raise InputError(f"{where}: min is above max")
    return Budget(name, unit, least, most, _LEVELS[level], _gpu(entry.get("max"), unit))


def _limits(entry: Mapping[str, Any], unit: Unit, where: str) -> Iterator[tuple[str, float]]:
    for key in ("min", "max"):
        if key in entry:
            yield key, _limit(entry[key], unit, f"{where}.{key}")


def _limit(value: Any, unit: Unit, where: str) -> float:
    if unit == "bytes":
        if _gpu(value, unit):
            return float(find_gpu(value).memory)
        try:
            return float(parse_memory(value))
        except ValueError:
            raise InputError(f"{where}: {_near_gpu(value)}") from None
    highest = 1.0 if unit == "share" else math.inf
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= highest:
        kind = "a share from 0 to 1" if unit == "share" else "a number from 0 on"
        raise InputError(f"{where}: must be {kind}")
    return float(value)


def _gpu(value: Any, unit: Unit) -> str:
    """The card that is meant; empty where the value names none."""
    try:
        return find_gpu(value).name if unit == "bytes" and isinstance(value, str) else ""
    except ValueError:
        return ""


def _near_gpu(value: Any) -> str:
    try:
        find_gpu(str(value))
    except ValueError as error:
        return f"is a size of memory such as 24GB, or {error}"
    return "is a size of memory such as 24GB"


def _check_known(name: Any, known: Any, where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(str(name), list(known), 1)
        meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"{where}: unknown key {str(name)!r}; {meant}")
