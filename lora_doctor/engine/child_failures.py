"""What it means for the evidence that a child process has failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from lora_doctor.engine.limits import TaskLimits, limit_of, sentence
from lora_doctor.errors import (
    Cause,
    ConfigError,
    EvidenceError,
    FactoryError,
    InputError,
    ModelClassError,
)
from lora_doctor.results.depth import Depth
from lora_doctor.results.from_json import from_json, mismatch
from lora_doctor.results.verification import Check, Failure, Verification
from lora_doctor.sandbox.outcome import Outcome
from lora_doctor.text import one_line

T = TypeVar("T")


def evidence_error(
    what: str, outcome: Outcome, limits: TaskLimits, import_errors: Mapping[str, str]
) -> EvidenceError:
    """Why ``what`` cannot be had. ``import_errors``: modules that every task needs, and why they
    cannot be imported.

    Raises:
        InputError: the child found that the user's input is at fault.
    """
    failure = outcome.failure
    assert failure is not None
    if failure.type == _name(InputError):
        raise InputError(failure.message)
    for kind in (ConfigError, FactoryError, ModelClassError, EvidenceError):
        if failure.type == _name(kind):
            return kind(failure.message, failure.cause, remedy=failure.remedy)
    limit = limit_of(failure, limits)
    if limit is not None:
        return EvidenceError(sentence(what, limit, failure), limit=limit)
    missing = [f"{name} ({error})" for name, error in import_errors.items()]
    if missing:
        return EvidenceError(
            f"{what} needs a training environment; cannot import {', '.join(missing)}; "
            "pip install 'lora-doctor[stack]'",
            remedy="package",
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
            f"{what} could not be made: the child process sent an invalid answer: {one_line(error)}"
        ) from error


def without_answer(
    depth: Depth, asked: tuple[str, str], outcome: Outcome, limits: TaskLimits
) -> Verification:
    """A run whose process ended without an answer. A crash has failed, which is an answer about the
    recipe; a limit of ours says nothing about it.

    ``asked``: device and dtype that were asked for, where the run had not told its own yet.
    """
    failure = outcome.failure
    assert failure is not None
    known = Verification(
        "undetermined",
        depth,
        outcome.facts.get("device") or asked[0],
        outcome.facts.get("dtype") or asked[1],
        (),
        peak_memory=outcome.peak_rss or None,
        seconds=outcome.seconds,
    )
    limit = limit_of(failure, limits)
    if limit is not None:
        reason = sentence(f"the {depth} model", limit, failure)
        return replace(known, reason=reason, obstacle="limit", limit=limit)
    return replace(
        known,
        outcome="failed",
        checks=(Check("forward", "failed", failure.kind, "the process lives", failure.message),),
        failure=Failure(
            "forward",
            failure.type or failure.kind,
            failure.message,
            traceback=failure.traceback or failure.log_tail,
        ),
    )
