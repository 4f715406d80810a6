"""What is known about a case: each piece of evidence gathered when first asked for, at most once.

A piece that could not be had is remembered with its reason, and is not tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, overload

from lora_doctor.errors import EvidenceError
from lora_doctor.results.diagnosis import Gathered

T = TypeVar("T")


class EvidenceStore:
    """Evidence by name. ``source`` names the model where a piece could not be had."""

    def __init__(self, source: str) -> None:
        #: What was gathered, in this order, with its origin and cost; what could not be had, too.
        self.gathered: list[Gathered] = []
        self._source = source
        self._values: dict[str, Any] = {}
        self._errors: dict[str, EvidenceError] = {}

    def get(self, name: str, gather: Callable[[], T]) -> T:
        """The piece of this name, gathered unless it is known.

        Raises:
            EvidenceError: it cannot be had, now or when it was first asked for.
        """
        if name in self._values:
            known: T = self._values[name]
            return known
        if name in self._errors:
            raise self._errors[name]
        try:
            value = gather()
        except EvidenceError as error:
            self._errors[name] = error
            if not any(piece.name == name for piece in self.gathered):
                self.gathered.append(Gathered(name, self._source, 0.0, str(error)))
            raise
        self._values[name] = value
        return value

    def known(self, name: str) -> Any:
        """The piece of this name if it was gathered, else ``None``."""
        return self._values.get(name)

    def error(self, name: str) -> EvidenceError | None:
        """Why the piece could not be had; ``None`` where it was not tried, or is known."""
        return self._errors.get(name)

    def keep(self, name: str, value: object) -> None:
        """Put a value in the place of what was gathered."""
        self._values[name] = value

    def refuse(self, name: str, error: EvidenceError) -> None:
        """Keep the reason why a piece cannot be had; nothing is tried."""
        self._errors[name] = error

    def forget(self, names: Iterable[str]) -> None:
        """Gather these pieces anew when they are next asked for."""
        for name in names:
            self._values.pop(name, None)
            self._errors.pop(name, None)

    def share_with(self, other: EvidenceStore, names: Iterable[str]) -> None:
        """Give another store what is known here of these pieces, reasons included."""
        for name in names:
            if name in self._values:
                other._values[name] = self._values[name]
            elif name in self._errors:
                other._errors[name] = self._errors[name]

    def timed(self, name: str, origin: str, gather: Callable[[], T]) -> T:
        """Call ``gather``, and note where the piece came from and how long it took."""
        start = time.perf_counter()
        value = gather()
        self.gathered.append(Gathered(name, origin, round(time.perf_counter() - start, 4)))
        return value


class HasStore(Protocol):
    """What evidence can be an attribute of."""

    @property
    def store(self) -> EvidenceStore: ...


class Evidence(Generic[T]):
    """One kind of evidence: an attribute whose value is gathered by the method that it was."""

    def __init__(self, gather: Callable[[Any], T], *, of_recipe: bool) -> None:
        self.of_recipe = of_recipe
        self.name = gather.__name__
        self.__doc__ = gather.__doc__
        self._gather = gather

    @overload
    def __get__(self, case: None, owner: type) -> Evidence[T]: ...

    @overload
    def __get__(self, case: HasStore, owner: type) -> T: ...

    def __get__(self, case: HasStore | None, owner: type) -> Evidence[T] | T:
        if case is None:
            return self
        return case.store.get(self.name, partial(self._gather, case))

    def known(self, case: HasStore) -> T | None:
        """The value if it was gathered, else ``None``."""
        value: T | None = case.store.known(self.name)
        return value


def evidence(*, of_recipe: bool) -> Callable[[Callable[[Any], T]], Evidence[T]]:
    """Declare a kind of evidence: its name and how it is gathered are those of the method.

    Args:
        of_recipe: whether another recipe on the same model changes it.
    """
    return partial(Evidence, of_recipe=of_recipe)


def kinds(owner: type, *, of_recipe: bool) -> list[str]:
    """Names of the evidence that a class and its bases declare, which a recipe changes or does
    not."""
    classes = (vars(one).values() for one in owner.__mro__)
    declared = (item for items in classes for item in items if isinstance(item, Evidence))
    return [item.name for item in declared if item.of_recipe is of_recipe]
