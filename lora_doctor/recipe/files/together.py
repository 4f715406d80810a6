"""Entries that a framework does not take together: one row for each, as its source has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.recipe.files.read_as import boolean
from lora_doctor.recipe.files.remark import Remark

Entries = Mapping[str, Any]


@dataclass(frozen=True)
class Together:
    """Entries that do not go together."""

    #: Those that are written are named; the first of them is where it stands.
    names: tuple[str, ...]
    #: Whether they are refused, or not read.
    applies: Callable[[Entries], bool]
    #: What the framework says or does, as the end of "FRAMEWORK ...".
    what: str
    #: Where in its code.
    source: str
    #: The change, in words.
    fix: str
    #: Entry to its new value, where there is only one choice.
    entries: tuple[tuple[str, Any], ...] = ()
    kind: Literal["refused", "unread"] = "refused"


def remarks_on(rows: Iterable[Together], entries: Entries) -> Iterator[Remark]:
    """The rows that apply to these entries."""
    for row in rows:
        if row.applies(entries):
            names = tuple(name for name in row.names if name in entries)
            yield Remark(
                row.kind, names or row.names[:1], row.what, row.source, row.fix, row.entries
            )


def on(entries: Entries, name: str, otherwise: bool = False) -> bool:
    """Whether an entry is on (``otherwise``: where it is not written); anything but "false" is
    where it is no boolean."""
    value = entries.get(name, otherwise)
    try:
        return value is not None and boolean(value)
    except ValueError:
        return bool(value)


def more_than_zero(entries: Entries, name: str) -> bool:
    try:
        return float(entries.get(name) or 0) > 0
    except (TypeError, ValueError):
        return True


def evaluates(entries: Entries) -> bool:
    """Whether the Trainer's arguments ask for evaluation."""
    strategy = str(entries.get("eval_strategy") or "no").lower()
    return on(entries, "do_eval") or strategy in ("steps", "epoch")
