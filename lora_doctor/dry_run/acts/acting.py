"""What all acts of one process share: the session, the hooks, and how far the run has come."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from lora_doctor.guest.call_sites import Place, caller
from lora_doctor.guest.import_hooks import ImportHooks
from lora_doctor.guest.journal import Journal
from lora_doctor.guest.replacing import Replacements
from lora_doctor.guest.session import STOPPED, Session

#: Optimizer steps after which training comes to its end.
STEPS = 3
#: Times that the end is raised before the process is ended: a bare ``except:`` swallows it.
_RAISED = 3


class DryRunEnd(BaseException):
    """The dry run has seen enough. No ``Exception``, so that nothing of the user's takes it for
    a failure of theirs."""


class Acting:
    """One process of a dry run.

    ``steps``: optimizer steps so far. ``in_trainer``: calls of a ``Trainer.train`` that are
    running: a trainer comes to its end by itself. ``evaluations``: those of a trainer that are
    running. ``in_contract``: whether what runs is ours.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.journal = Journal(session)
        self.hooks = ImportHooks()
        self.replaced = Replacements()
        self.steps = 0
        self.in_trainer = 0
        self.evaluations = 0
        #: Whether the model that trains has written the rows that it trains on.
        self.writes_its_rows = False
        #: Whether a model has written anything outside of an evaluation: a loop may train on it.
        self.has_generated = False
        #: What compares accumulated micro-batches with a large batch, while it does.
        self.accumulation: Any = None
        self._inside = threading.local()
        self._told: set[tuple[str, str]] = set()
        self._ends_raised = 0
        #: Called once before the user's code is ended.
        self.before_end: Callable[[], None] = lambda: None
        #: Called once before the first model runs that trains.
        self.before_first_forward: Callable[[], None] = lambda: None
        self._model: Any = None
        #: Tokenizers that were loaded, oldest first.
        self.tokenizers: list[weakref.ref[Any]] = []
        #: Where each PEFT config was made, by its identity.
        self.config_places: dict[int, Place] = {}
        #: Its fields whose values are not the defaults of their class.
        self.config_given: dict[int, list[str]] = {}
        #: Its values by our keys when a model was wrapped with it.
        self.config_values: dict[int, dict[str, Any]] = {}

    @property
    def rows(self) -> int:
        """How many of each data set are read."""
        return int(self.session.options.get("rows", 64))

    @property
    def in_contract(self) -> bool:
        """Whether this thread runs the training contract, or makes a small model."""
        return bool(getattr(self._inside, "depth", 0))

    def ours(self) -> _Ours:
        """For the length of a ``with``, nothing that happens in this thread is the user's."""
        return _Ours(self._inside)

    @property
    def ended(self) -> bool:
        """Whether training has had its steps."""
        return self.steps >= STEPS

    def after(self, module: str, act: Callable[[ModuleType], None]) -> None:
        """Act on a module once it is imported; where it lacks what is needed, the process stops:
        what would run on is no dry run any more."""

        def acted(found: ModuleType) -> None:
            try:
                act(found)
            except Exception as error:  # noqa: BLE001 - whatever is missing, the run would be real
                self.stop(f"{module} is not as a dry run knows it: {type(error).__name__}: {error}")

        self.hooks.after(module, acted)

    def trains(self, model: Any) -> None:
        """That this is the model that trains; the first one stays it."""
        if self._model is None:
            self._model = weakref.ref(model)
            self.before_first_forward()

    def trained_model(self) -> Any:
        """The model that trains, or ``None``."""
        return None if self._model is None else self._model()

    def seen(self, kind: str) -> list[dict[str, Any]]:
        """What this process has told of a kind."""
        return self.journal.told(kind)

    def note(self, kind: str, text: str, *, once: str = "") -> None:
        """Something that is otherwise than in the real run. ``once``: what is said once only."""
        key = (kind, once or text)
        if key not in self._told:
            self._told.add(key)
            place = caller()
            self.journal.tell("note", note=kind, text=text, place=_place(place))

    def end(self, why: str) -> None:
        """End the user's code from here; ``why`` is what was not run."""
        self._ends_raised += 1
        if self._ends_raised == 1:
            self.journal.tell("ended", why=why)
            self.before_end()
        if self._ends_raised > _RAISED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        raise DryRunEnd(why)

    def stop(self, why: str) -> None:
        """Stop the process: the dry run cannot be had here."""
        self.journal.tell("stopped", why=why)
        os.write(2, f"lora-doctor: {why}; stopped\n".encode(errors="replace"))
        os._exit(STOPPED)


class _Ours:
    def __init__(self, inside: Any) -> None:
        self._inside = inside

    def __enter__(self) -> None:
        self._inside.depth = getattr(self._inside, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        self._inside.depth -= 1


def _place(place: Any) -> dict[str, Any] | None:
    return None if place is None else vars(place)
