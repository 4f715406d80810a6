"""Observers: they watch the training contract run and take readings, without a run of their own.

One kind of reading is one observer in a file of its own beside this one, found by its place. To add
one: a dataclass and a field in ``results/observations.py``, and the file. Torch is imported inside
functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lora_doctor.contract.observers.base import Observer, Setting
from lora_doctor.discovery import find_modules
from lora_doctor.results.note import Note
from lora_doctor.results.observations import Observations

if TYPE_CHECKING:
    from lora_doctor.contract.adapters import AdapterLayer


def observer_classes() -> list[type[Observer]]:
    """The observers in the files of this folder, in the order of their file names."""
    return [
        value
        for module in find_modules(__name__)
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Observer)
        and value is not Observer
        and value.__module__ == module.__name__
    ]


class Observers:
    """All observers of one run; none where nobody asks what they see."""

    def __init__(self, setting: Setting, *, asked: bool = True) -> None:
        self.setting = setting
        self._observers = [kind(setting) for kind in observer_classes()] if asked else []
        self._stepped = False

    def forwards(self, model: Any) -> AbstractContextManager[None]:
        """Watch the forwards of the base model in the block."""
        return self._watching(lambda observer: observer.watch(model))

    def training_forward(self, model: Any) -> AbstractContextManager[None]:
        """Watch the training forward in the block."""
        return self._watching(lambda observer: observer.watch_training(model))

    @contextmanager
    def _watching(self, watch: Callable[[Observer], Iterable[Any]]) -> Iterator[None]:
        handles: list[Any] = []
        for observer in self._observers:
            observer.safely(partial(_collect, handles, watch, observer))
        try:
            yield
        finally:
            for handle in reversed(handles):
                handle.remove()

    def attached(self, model: Any, layers: list[AdapterLayer]) -> None:
        for observer in self._observers:
            observer.safely(partial(observer.attached, model, layers))

    @contextmanager
    def step(self, layers: list[AdapterLayer]) -> Iterator[None]:
        """Around every optimizer step; only the first one is looked at."""
        first, self._stepped = not self._stepped, True
        for observer in self._observers if first else ():
            observer.safely(partial(observer.before_step, layers))
        yield
        for observer in self._observers if first else ():
            observer.safely(partial(observer.after_step, layers))

    def observations(self) -> Observations:
        readings: dict[str, Any] = {}
        for observer in self._observers:
            readings[observer.field] = observer.safely(observer.readings) or ()
        notes = tuple(
            Note(
                "not-observed",
                f"{observer.field} could not be observed: {observer.broken}",
                observer.broken,
            )
            for observer in self._observers
            if observer.broken
        )
        weights: Literal["own", "random"] = "own" if self.setting.user_weights else "random"
        inputs: Literal["own", "made"] = "own" if self.setting.user_inputs else "made"
        return Observations(weights=weights, inputs=inputs, notes=notes, **readings)


def _collect(
    handles: list[Any], watch: Callable[[Observer], Iterable[Any]], observer: Observer
) -> None:
    """Each handle is kept as soon as it is there: a later one may fail to be made."""
    for handle in watch(observer):
        handles.append(handle)
