"""Why a dry run leaves the question open: it was stopped, nothing was trained, or what ended the
command says something about this machine and nothing about the command."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_doctor.dry_run import launch
from lora_doctor.dry_run.captured import Captured
from lora_doctor.dry_run.not_here import is_about_here
from lora_doctor.dry_run.real_widths import has_real_widths
from lora_doctor.dry_run.several import otherwise_shared, waited_for_us
from lora_doctor.dry_run.training_signal import signal_of
from lora_doctor.guest.session import STOPPED
from lora_doctor.results.dry_run import ScriptError
from lora_doctor.text import short_path

#: What a loop of the user's may raise because its loader came to an early end.
_OF_SHORT_LOOPS = ("ZeroDivisionError", "StopIteration", "IndexError", "UnboundLocalError")


def is_ours(error: ScriptError, captured: Captured) -> bool:
    """Whether an exception says nothing about the user's command, but about this machine or the
    way in which it was cut short."""
    if is_about_here(error) or has_real_widths(captured):
        return True
    if error.type == "SystemExit" or not captured.all("model"):
        lacking = ("OSError", "ConnectionError", "NotFoundError", "HTTPError", "SystemExit")
        if error.type.endswith(lacking) or _no_data(error, captured) is not None:
            return True
    if _no_data(error, captured) is not None or waited_for_us(captured.every, error):
        return True
    cut = any(record.get("by") == "a loop" for record in captured.all("trained"))
    return cut and error.type in _OF_SHORT_LOOPS


def _no_data(error: ScriptError, captured: Captured) -> Mapping[str, Any] | None:
    """The record of the data set that could not be had, where the error says so."""
    for record in captured.all("no_data"):
        if error.message[:80] and error.message[:80] in " ".join(str(record["reason"]).split()):
            return record
    return None


def _about_here(error: ScriptError, captured: Captured, pythons: frozenset[str]) -> str:
    """What the small model, a data set that cannot be had, or another Python has to do with it."""
    if has_real_widths(captured):
        return (
            " (the command's own code has a width of the real model, which is too large for here)"
        )
    other = min((one for one in pythons if not _is_own(one)), default=None)
    if error.type == "ModuleNotFoundError" and other is not None:
        return f" (the command's Python is {other}; lora-doctor runs in {sys.executable})"
    record = _no_data(error, captured)
    if record is None:
        return ""
    if record.get("no_rows"):
        return f" (no rows were made up for it: {record['no_rows']})"
    return " (--synthetic-data goes on with rows made up from the features that it declares)"


def _is_own(python: str) -> bool:
    """Whether an interpreter is of the environment in which we run."""
    return Path(python).absolute().parent == Path(sys.executable).absolute().parent


def why_open(
    ended: launch.Ended,
    captured: Captured,
    pythons: frozenset[str],
    error: ScriptError | None,
) -> str | None:
    """Why nothing can be said of the command; ``None`` where something can. ``pythons``: the
    interpreters of its processes that were seen."""
    if ended.refused:
        return f"stopped, because nothing could be shrunk there: {ended.refused}"
    stopped = captured.last("stopped") or captured.last("refused")
    if stopped is not None or ended.code == STOPPED:
        why = stopped.get("why") or stopped.get("reason") if stopped is not None else ""
        return f"stopped: {why or _last_line(ended.output)}"
    if ended.limit is not None:
        unit = "s" if ended.limit.kind == "time" else "bytes"
        return (
            f"the command reached the {ended.limit.kind} limit of {ended.limit.limit:.6g} {unit} "
            f"while {ended.limit.stage}; raise it with {ended.limit.option}"
        )
    if not pythons:
        return "no Python process of the command was seen"
    if error is not None:
        if not is_ours(error, captured):
            return None
        place = f" at {error.file}:{error.line}" if error.file else ""
        told = f"the command did not come through here{place}: {error.type}: {error.message[:400]}"
        return told + _about_here(error, captured, pythons)
    if not captured.steps:
        return _why_no_step(ended, captured)
    if captured.frozen() is None and captured.last("adapted") is None:
        return "no model with adapters of PEFT was trained"
    if captured.last("no_contract") is not None:
        return f"the training contract was not run: {captured.all('no_contract')[-1]['reason']}"
    return _why_ended(ended, captured) or _why_not_alike(captured)


def _why_ended(ended: launch.Ended, captured: Captured) -> str | None:
    """A command that died behind its steps, of a signal or by ``os._exit``: no exception tells."""
    if not ended.code or captured.all("ended"):
        return None
    return f"the command did not come to its end after {captured.steps} steps ({_end(ended)})"


def _why_no_step(ended: launch.Ended, captured: Captured) -> str | None:
    """``None`` where it is known that the real run takes none either (LD568)."""
    if signal_of(captured.records, short_path).without_step is not None:
        return None
    return "the command took no optimizer step" + (f" ({_end(ended)})" if ended.code else "")


def _end(ended: launch.Ended) -> str:
    """How a command ended that no exception has ended: a signal, or an exit code of its own."""
    how = f"exit code {ended.code}"
    if ended.code < 0:
        with contextlib.suppress(ValueError):
            how = f"ended by {signal.Signals(-ended.code).name}"
    return f"{how}; its last line: {_last_line(ended.output)}"


def _why_not_alike(captured: Captured) -> str | None:
    """Why a run that came to its end is not what the real run is."""
    lacking, several = captured.last("lacking"), captured.processes()
    if lacking is not None:
        return str(lacking["why"])
    return (otherwise_shared(several) if several is not None else None) or captured.estimated()


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it wrote nothing"
