"""What an observer of the training contract is, and what it is told of the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lora_doctor.text import one_line

if TYPE_CHECKING:
    from lora_doctor.contract.adapters import AdapterLayer


@dataclass(frozen=True)
class Setting:
    """What an observer may want to know of the run.

    ``user_weights``: these are the weights that the user trains from; ``user_inputs``: the batches
    are the user's too, or hold tokens only. ``dtype``: of the model that runs; ``wanted_dtype``:
    the one that the recipe names, else the same. ``learning_rate``: of the contract's optimizer.
    ``float16``: whether the recipe or the weights ask for float16.
    """

    user_weights: bool
    dtype: str
    wanted_dtype: str
    learning_rate: float
    float16: bool = False
    user_inputs: bool = False


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
