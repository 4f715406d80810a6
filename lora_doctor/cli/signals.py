"""SIGTERM and SIGHUP end a run as Ctrl-C does: children killed, temporary folders removed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_NAMES = ("SIGTERM", "SIGHUP")


class EndedBySignal(KeyboardInterrupt):
    """One of these signals came; ``number`` is which. A KeyboardInterrupt, because whoever cleans
    up for that, or passes it on, has to do the same for this."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def end_like_interrupt() -> Iterator[None]:
    """Turn the signals into :class:`EndedBySignal`. One that somebody handles or ignores already
    (``nohup``) stays his."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # no SIGHUP: nt
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, frame: Any) -> None:
        for one in taken:  # cleaning up takes seconds at most and is not broken off
            signal.signal(one, signal.SIG_IGN)
        raise EndedBySignal(number)

    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def end_by(number: int) -> int:
    """End this process by the signal, so that its parent sees what ended it (a shell: 128 + n).
    Returns that number where the signal does not end it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number
