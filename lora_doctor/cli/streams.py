"""The standard streams: results alone go to standard output, and nothing of strangers moves a
terminal's cursor.

While a command runs, descriptor 1 is standard error: what a rule file, a library or a program that
they start prints ends there. Results go to a descriptor of their own.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import click

from lora_doctor.errors import InputError
from lora_doctor.files import moved_descriptors
from lora_doctor.limits import PASTED_BYTES
from lora_doctor.results.secrets import hidden
from lora_doctor.text import visible, visible_lines

#: Numbers of standard streams that were closed when we began.
_closed: set[int] = set()
#: Where results go while a command runs; ``None`` before.
_results: TextIO | None = None


def open_missing() -> None:
    """Put the null device where a standard stream is closed (``>&-``): the next file that is
    opened would get its number, and what is printed."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            _closed.add(number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


@contextlib.contextmanager
def results_apart(*, give_back: bool) -> Iterator[None]:
    """Keep standard output for results.

    Args:
        give_back: whether it is standard output again afterwards; a process that ends with the
            command does without, so that what prints at its exit does not spoil the results.
    """
    global _results
    if _results is not None:
        yield
        return
    before = sys.stdout
    if not _is_descriptor(before, 1):  # captured, in a process of somebody else's
        _results = before
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            _results = None
        return
    before.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    moved_descriptors[1] = own
    _results = open(  # noqa: SIM115 - closed below
        own, "w", encoding=before.encoding, errors=before.errors, closefd=False
    )
    try:
        yield
    finally:
        if give_back:
            with contextlib.suppress(OSError, ValueError):
                before.flush()
            os.dup2(own, 1)
            del moved_descriptors[1]
            os.close(own)
            _results = None


def put_back() -> None:
    """Let standard output be what it was given as, for a program that takes the place of this
    one."""
    own = moved_descriptors.get(1)
    if own is not None:
        os.dup2(own, 1)


def results() -> TextIO:
    """Where results go."""
    return _results if _results is not None else sys.stdout


def write(text: str, *, end: str = "\n", foreign: bool = True) -> None:
    """Write a result to standard output.

    Args:
        foreign: show what cannot be seen as escapes; without, the text has colours and has seen
            to that itself.

    Raises:
        InputError: it takes nothing more (a full disk), or is closed.
    """
    if 1 in _closed:
        raise InputError("standard output is closed; redirect it to a file")
    out = results()
    try:
        click.echo((visible_lines(text) if foreign else text) + end, file=out, nl=False)
    except BrokenPipeError:
        # `lora-doctor ... | head`: the reader has gone; the exit code stays what it is.
        _to_nowhere(out)
    except OSError as error:
        _to_nowhere(out)
        raise InputError(
            f"standard output: cannot be written: {error.strerror}; write to a file elsewhere"
        ) from error


def tell(text: str) -> None:
    """One line on standard error, which CI keeps in its logs: without secrets. Where it cannot be
    written, nobody is told."""
    try:
        click.echo(visible(hidden(text), None), err=True)
    except (OSError, ValueError):
        _to_nowhere(sys.stderr)


def read_input() -> str:
    """The text on standard input, bytes that are not text replaced.

    Raises:
        InputError: it is closed, or more than a log that anybody means.
    """
    if 0 in _closed:
        raise InputError("standard input is closed: there is nothing to read; give the text itself")
    try:
        content = sys.stdin.buffer.read(PASTED_BYTES + 1)
    except OSError as error:
        raise InputError(f"standard input: cannot be read: {error.strerror}") from error
    if len(content) > PASTED_BYTES:
        raise InputError(
            f"standard input: has more than {PASTED_BYTES >> 20} MiB; give the last lines only, "
            "as in `tail -n 200 LOG | lora-doctor explain -`"
        )
    return decoded(content)


def decoded(content: bytes, start: bytes = b"") -> str:
    """Bytes as text, those that are none replaced; ``start``: how the file begins of which
    ``content`` is the end. What PowerShell redirects is UTF-16."""
    utf_16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
    return content.decode(utf_16.get((start or content)[:2], "utf-8"), "replace").lstrip("\ufeff")


def _is_descriptor(stream: Any, number: int) -> bool:
    try:
        return bool(stream.fileno() == number)
    except (OSError, ValueError, AttributeError):
        return False


def _to_nowhere(stream: Any) -> None:
    """Let what is still in the stream's buffer go to the null device: it would fail again when
    the process ends, and change the exit code."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
