"""What it means for the evidence that a child process has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lora_doctor.errors import Cause, EvidenceError, InputError
from lora_doctor.results.from_json import from_json, mismatch
from lora_doctor.results.verification import Check, Failure, Verification
from lora_doctor.sandbox.outcome import Outcome
from lora_doctor.sandbox.worker import Worker
from lora_doctor.text import one_line

T = TypeVar("T")


def evidence_error(what: str, outcome: Outcome, worker: Worker) -> EvidenceError:
    """Why ``what`` cannot be had.

    Raises:
        InputError: the child found that the user's input is at fault.
    """
    failure = outcome.failure
    assert failure is not None
    if failure.type == _name(InputError):
        raise InputError(failure.message)
    if failure.type == _name(EvidenceError):
        return EvidenceError(failure.message, failure.cause)
    missing = [f"{name} ({error})" for name, error in worker.import_errors.items()]
    if missing:
        return EvidenceError(
            f"{what} needs a training environment; cannot import {', '.join(missing)}; "
            "pip install 'lora-doctor[stack]'"
        )
    label = f"{failure.type}: " if failure.type else ""
    return EvidenceError(
        f"{what} could not be made: {failure.kind}: {label}{failure.message}",
        Cause(failure.type, failure.message) if failure.kind == "exception" else None,
    )


def _name(error: type[BaseException]) -> str:
    """A class of ours as the child names it."""
    return f"{error.__module__}.{error.__qualname__}"


def read_answer(
    kind: type[T], outcome: Outcome, what: str, check: Callable[[T], object] = lambda found: None
) -> T:
    """The result of a task, out of its JSON; ``check`` raises where that is not enough.

    Raises:
        EvidenceError: it is none: model code in the same process can say anything.
    """
    try:
        found = from_json(kind, outcome.value)
        wrong = mismatch(found)
        if wrong is not None:
            raise TypeError(f"{kind.__name__}.{wrong} is of another kind")
        check(found)
        return found
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise EvidenceError(
            f"{what} could not be made: the child process answered nonsense: {one_line(error)}"
        ) from error


def went_down(outcome: Outcome, depth: str) -> Verification:
    """A run that took its process down, by a crash, the time or the memory limit, has failed."""
    failure = outcome.failure
    assert failure is not None
    return Verification(
        outcome="failed",
        depth=depth,
        device="cpu",
        dtype="",
        checks=(Check("forward", "failed", failure.kind, "the process lives", failure.message),),
        failure=Failure(
            "forward",
            failure.type or failure.kind,
            failure.message,
            traceback=failure.traceback or failure.log_tail,
        ),
        peak_memory=outcome.peak_rss or None,
        seconds=outcome.seconds,
    )
