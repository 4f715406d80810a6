"""Observers: they watch the training contract run and take readings, without a run of their own.

One kind of reading is one observer in a file of its own in ``lora_doctor/observers``. To add one:
a dataclass and a field in ``observations``, the file, and its class in :func:`_observers`. Torch is
imported inside functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lora_doctor.evidence.locator import one_line
from lora_doctor.observations import Observations

if TYPE_CHECKING:
    from lora_doctor.adapters import AdapterLayer


@dataclass(frozen=True)
class Setting:
    """What an observer may want to know of the run.

    ``own_weights``: these are the weights that the user trains from; ``own_inputs``: the batches
    are the user's too, or hold tokens only. ``dtype``: of the model that runs; ``wanted_dtype``:
    the one that the recipe names, else the same. ``learning_rate``: of the contract's optimizer.
    ``float16``: whether the recipe or the weights ask for float16.
    """

    own_weights: bool
    dtype: str
    wanted_dtype: str
    learning_rate: float
    float16: bool = False
    own_inputs: bool = False


class Observer(ABC):
    """Takes one kind of reading. Its hooks are made by :meth:`hook` and change nothing."""

    #: The field of :class:`Observations` that it fills.
    field: ClassVar[str]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.broken = ""

    def watch(self, model: Any) -> Iterable[Any]:
        """Set hooks for the base model's forwards (eval mode, no gradients, adapters off, each
        batch once); returns their handles, which are removed afterwards."""
        return ()

    def watch_training(self, model: Any) -> Iterable[Any]:
        """The same for the first training forward of each batch, adapters on, with gradients."""
        return ()

    def attached(self, model: Any, layers: list[AdapterLayer]) -> None:
        """The adapters are on."""
        return

    def before_step(self, layers: list[AdapterLayer]) -> None:
        """Gradients of the first batch are there, the first optimizer step comes next."""
        return

    def after_step(self, layers: list[AdapterLayer]) -> None:
        """The first optimizer step was made."""
        return

    @abstractmethod
    def readings(self) -> tuple[Any, ...]:
        """What was seen."""

    def hook(self, look: Callable[..., None]) -> Callable[..., None]:
        """``look`` as a hook that returns nothing and does not raise: see :meth:`safely`."""

        def hook(*arguments: Any) -> None:
            self.safely(lambda: look(*arguments))

        return hook

    def safely(self, call: Callable[[], Any]) -> Any:
        """Call it unless an earlier call failed. An observer's mistake is ours: it ends the
        observer, with a note, and must not look like a failure of the model's."""
        if self.broken:
            return None
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - noted, see the docstring
            self.broken = f"{type(error).__name__}: {one_line(error, 200)}"
            return None


class Observing:
    """All observers of one run; none where nobody asks what they see."""

    def __init__(self, setting: Setting, *, asked: bool = True) -> None:
        self.setting = setting
        self._observers = _observers(setting) if asked else []
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
            f"{observer.field} could not be observed: {observer.broken}"
            for observer in self._observers
            if observer.broken
        )
        weights: Literal["own", "random"] = "own" if self.setting.own_weights else "random"
        inputs: Literal["own", "made"] = "own" if self.setting.own_inputs else "made"
        return Observations(weights=weights, inputs=inputs, notes=notes, **readings)


def _collect(
    handles: list[Any], watch: Callable[[Observer], Iterable[Any]], observer: Observer
) -> None:
    """Each handle is kept as soon as it is there: a later one may fail to be made."""
    for handle in watch(observer):
        handles.append(handle)


def _observers(setting: Setting) -> list[Observer]:
    from lora_doctor.observers.activations import Activations
    from lora_doctor.observers.attention import Attention
    from lora_doctor.observers.connections import Connections
    from lora_doctor.observers.idle import Idle
    from lora_doctor.observers.instance_patches import InstancePatches
    from lora_doctor.observers.misfits import Misfits
    from lora_doctor.observers.norms import Norms
    from lora_doctor.observers.updates import Updates

    return [
        Norms(setting), Connections(setting), Attention(setting), Updates(setting),
        InstancePatches(setting), Activations(setting), Idle(setting),
        Misfits(setting),
    ]  # fmt: skip
