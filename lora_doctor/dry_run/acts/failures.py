"""Exceptions of the user's run, with the frames in their own files, and how the process ended."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import sys
from types import ModuleType, TracebackType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting, DryRunEnd
from lora_doctor.errors import Cause
from lora_doctor.guest.call_sites import caller, of_traceback, renamed
from lora_doctor.text import TRACEBACK_CHARS, one_line, traceback_text


def prepare(acting: Acting) -> None:
    """See what ends the process; in a notebook, what ends a cell."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, DryRunEnd):
            return  # the process ends with code 1, which the parent knows to be our doing
        tell(acting, error)
        before(kind, error, trace)

    sys.excepthook = hook
    _command_lines(acting)
    acting.hooks.after("click.exceptions", lambda module: _click(acting, module))
    atexit.register(lambda: acting.journal.tell("exit"))
    acting.hooks.after("IPython.core.interactiveshell", lambda module: _in_cells(acting, module))
    acting.hooks.after("IPython.core.compilerop", lambda module: _cells(acting, module))


def tell(acting: Acting, error: BaseException) -> None:
    """Record an exception, once."""
    if isinstance(error, (DryRunEnd, KeyboardInterrupt)) or getattr(error, _SEEN, False):
        return
    with contextlib.suppress(AttributeError):  # one with slots is told twice, which does no harm
        setattr(error, _SEEN, True)
    refused = refused_by_argparse(error)
    cause = refused or Cause.of(error)
    # Of a call that is refused Python prints the model first, and then for what.
    message = cause.message if refused else one_line(error, TRACEBACK_CHARS)
    every, own = of_traceback(error.__traceback__)
    # Caught in a library, a traceback begins there: who called it is on the stack.
    outer = None if own else caller()
    if outer is not None:
        own = [outer]
    acting.journal.tell(
        "error",
        type=cause.type,
        message=message + _behind(error),
        own=[vars(place) for place in own],
        deepest=vars(every[-1]) if every else None,
        traceback=traceback_text(error),
        steps=acting.steps,
        exit_code=error.code if isinstance(error, SystemExit) else None,
    )


def refused_by_argparse(error: BaseException) -> Cause | None:
    """What argparse has against the command line, which it prints before it exits; ``None`` for any
    other exception."""
    trace = error.__traceback__ if isinstance(error, SystemExit) and error.code else None
    frame = None
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
    if frame is None or frame.f_code.co_name != "exit":
        return None
    message = frame.f_locals.get("message")
    if frame.f_globals.get("__name__") != "argparse" or not isinstance(message, str):
        return None
    return Cause.of(argparse.ArgumentError(None, " ".join(message.split())))


def _command_lines(acting: Acting) -> None:
    """Command lines that argparse refuses: it exits, of which no hook of exceptions is told."""

    def refused(original: Any, parser: Any, message: Any, *more: Any, **named: Any) -> Any:
        error = argparse.ArgumentError(None, " ".join(str(message).split()))
        _tell_refused(acting, error)
        return original(parser, message, *more, **named)

    acting.replaced.around(argparse.ArgumentParser, "error", refused)


def _click(acting: Acting, module: ModuleType) -> None:
    """Those that click and Typer refuse, which they show before they exit."""

    def shown(original: Any, error: Any, *more: Any, **named: Any) -> Any:
        _tell_refused(acting, module.UsageError(error.format_message()))
        return original(error, *more, **named)

    acting.replaced.around(module.UsageError, "show", shown)


def _tell_refused(acting: Acting, error: BaseException) -> None:
    cause, place = Cause.of(error), caller()
    acting.journal.tell(
        "refused_arguments",
        type=cause.type,
        message=cause.message,
        own=[] if place is None else [vars(place)],
        deepest=None,
        traceback="",
        steps=acting.steps,
        exit_code=None,
    )


def _behind(error: BaseException) -> str:
    """What an import failed for at last: libraries that import lazily say only which name."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    if root is error or not isinstance(error, ImportError):
        return ""
    return f" ({Cause.of(root)})"


_SEEN = "_lora_doctor_seen"


def _in_cells(acting: Acting, module: ModuleType) -> None:
    def shown(original: Any, shell: Any, *arguments: Any, **named: Any) -> Any:
        error = sys.exc_info()[1]
        if error is not None:
            tell(acting, error)
        return original(shell, *arguments, **named)

    acting.replaced.around(module.InteractiveShell, "showtraceback", shown)


def _cells(acting: Acting, module: ModuleType) -> None:
    """The files that IPython makes of cells, by the numbers of the cells."""

    def cached(original: Any, compiler: Any, code: Any, number: int = 0, **named: Any) -> Any:
        file = original(compiler, code, number, **named)
        renamed[file] = f"cell [{number}]"
        return file

    acting.replaced.around(module.CachingCompiler, "cache", cached)
