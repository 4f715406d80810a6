"""The book of a verification while it runs: checks with their numbers, the failure, the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_doctor.contract.locator import Locator, NonFinite
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.note import Note, NoteKind
from lora_doctor.results.verification import CHECKS, Check, CheckStatus, Failure, Obstacle, Problem
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.text import one_line, single_line, traceback_text, where


class Stop(Exception):
    """The contract cannot go on; with an ``obstacle`` the reason says nothing about the recipe.

    ``base_error``: what the model raised without adapters, where that is the obstacle.
    """

    def __init__(
        self,
        reason: str,
        obstacle: Obstacle | None = None,
        base_error: ErrorReport | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.obstacle = obstacle
        self.base_error = base_error


class Recorder:
    """Checks in the order of :data:`CHECKS`, each at most once."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self.failure: Failure | None = None
        self.notes: list[Note] = []
        #: The first module with an output that is not finite, where the loss is: it is hidden.
        self.hidden: NonFinite | None = None

    def add(
        self,
        name: str,
        good: bool,
        value: Any = None,
        expected: str = "",
        detail: str = "",
        problems: tuple[Problem, ...] = (),
        total: int | None = None,
    ) -> bool:
        """Enter a check that was made; returns ``good``."""
        status: CheckStatus = "passed" if good else "failed"
        self._enter(Check(name, status, value, expected, detail, problems, total=total))
        return good

    def skip(self, name: str, why: str) -> None:
        self._enter(Check(name, "skipped", detail=why))

    def unfail(self, name: str, why: str) -> None:
        """Turn a failed check into a skipped one: the library cannot do it, nothing is wrong."""
        self._checks.pop(name)
        if self.failure is not None and self.failure.check == name:
            self.failure = None
        self.skip(name, why)

    def note(self, kind: NoteKind, text: str, reason: str = "") -> None:
        note = Note(kind, text, reason)
        if note not in self.notes:
            self.notes.append(note)

    def warned(self, library: str, text: str) -> None:
        """A warning of a library's, once; it is evidence, and a rule may say more of it."""
        said = single_line(text, 400)
        if not any(note.kind == "warned" and note.reason == said for note in self.notes):
            self.note("warned", f"{library} warned: {said}", said)

    def _enter(self, check: Check) -> None:
        assert check.name in CHECKS and check.name not in self._checks, check.name
        self._checks[check.name] = check

    @contextmanager
    def guard(
        self, name: str, model: Any = None, *, look: bool = False
    ) -> Iterator[Locator | None]:
        """An exception in the block fails the check ``name`` and stops the contract.

        With ``model`` the module that was running is found; with ``look`` also the first one
        whose output was not finite. Running out of main memory is passed
        on: that is for the one who set the limit.
        """
        locator = Locator(model, look=look) if model is not None else None
        try:
            if locator is None:
                yield None
            else:
                with locator:
                    yield locator
        except Stop:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.fail(name, error, locator.running if locator else "")
            raise Stop(f"{name} failed") from error

    def fail(self, name: str, error: BaseException, module: str = "") -> None:
        """Enter an exception as the failure of the check ``name``; the first one is kept."""
        kind, message = type(error).__name__, one_line(error)
        if name not in self._checks:
            raised = ErrorReport(kind, message, where(error))
            self._enter(
                Check(name, "failed", kind, "no exception", f"{kind}: {message}", raised=raised)
            )
        if self.failure is None:
            self.failure = Failure(
                check=name,
                type=kind,
                message=message,
                module=module,
                where=where(error),
                traceback=traceback_text(error),
            )

    def blame(self, name: str, kind: str, message: str, module: str) -> None:
        """Enter a failure without an exception, such as the module that makes NaN."""
        if self.failure is None:
            self.failure = Failure(check=name, type=kind, message=message, module=module)

    @property
    def failed(self) -> bool:
        return any(check.status == "failed" for check in self._checks.values())

    def checks(self, reason: str = "") -> tuple[Check, ...]:
        """All checks in order; those never made are skipped, with this reason."""
        missing = reason or "was not reached"
        return tuple(
            self._checks.get(name) or Check(name, "skipped", detail=missing) for name in CHECKS
        )
