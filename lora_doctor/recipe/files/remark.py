"""What a format knows of entries that do not go together: told by a rule, with the change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Remark:
    """Entries of a set-up that do something else than they say."""

    #: ``unread``: the framework does not read them. ``packing``: samples of one row see each other.
    #: ``refused``: the framework ends with an error before it trains.
    kind: Literal["unread", "packing", "refused"]
    #: The entries; the first is where it stands.
    names: tuple[str, ...]
    #: What happens, as the end of "FRAMEWORK ...".
    what: str
    #: Where in the framework's code that is.
    source: str
    #: The change, in words.
    fix: str
    #: Entry to its new value; ``REMOVE`` takes it out. Empty: the fix is for the user.
    entries: tuple[tuple[str, Any], ...] = ()
    #: Whether training stays what it is (or starts at all) with the change.
    safe: bool = False
