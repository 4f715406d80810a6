"""How a recipe file spells the keys of a recipe: the name of each entry, and its value."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Spelling:
    """One way to write one key, such as ``lora_target: q_proj,v_proj`` for ``target_modules``.

    ``read`` and ``write`` raise ``ValueError`` for a value that the other side does not have; its
    text says what the value has to be ("is a list of names").
    """

    #: Key of the recipe: PEFT's or transformers' name.
    key: str
    #: Name of the entry in the file.
    name: str
    #: The recipe's value for the value in the file.
    read: Callable[[Any], Any] = _as_it_is
    #: The file's value for a value of the recipe, in its normal form.
    write: Callable[[Any], Any] = _as_it_is


class Spellings:
    """All spellings of a format."""

    def __init__(
        self, *spellings: Spelling, same_name: Callable[[str], bool] = lambda key: False
    ) -> None:
        """``same_name``: which keys the file may also have under the recipe's own name. Several
        spellings may share one entry (``quantization_bit``: ``load_in_4bit``, ``load_in_8bit``)."""
        self._spellings = spellings
        self._same_name = same_name

    def of_key(self, key: str) -> tuple[Spelling, ...]:
        """How the file may spell a key; a new entry takes the first. Empty: it has no place."""
        same = (Spelling(key, key),) if self._same_name(key) else ()
        return same + tuple(spelling for spelling in self._spellings if spelling.key == key)

    def of_name(self, name: str) -> tuple[Spelling, ...]:
        """What an entry of the file spells. Empty: nothing that a recipe has."""
        found = tuple(spelling for spelling in self._spellings if spelling.name == name)
        return found or ((Spelling(name, name),) if self._same_name(name) else ())

    def turned_around(self, keys: Collection[str]) -> Spelling | None:
        """One whose key is none of these and whose name is: the two stand in each other's place.
        Not every key is known here: of each kind of adapter PEFT has some of its own."""
        spellings = self._spellings
        return next((one for one in spellings if one.key not in keys and one.name in keys), None)

    def keys(self, name: str) -> tuple[str, ...]:
        """The keys of the recipe that an entry of the file sets."""
        return tuple(spelling.key for spelling in self.of_name(name))

    def present(self, key: str, values: Mapping[str, Any]) -> Spelling | None:
        """The spelling of the key that stands in a file, or ``None`` where none does."""
        return next((one for one in self.of_key(key) if one.name in values), None)
