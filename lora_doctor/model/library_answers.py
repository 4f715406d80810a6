"""Asking a library what it would do: what it logs meanwhile is kept, and it can be asked as on a
machine with a GPU.

Runs where torch and transformers are imported.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

#: What a GPU that is only spoken of can do: the formats of 8 bits ask for 8.9 and more.
_CAPABILITY = (9, 0)


class Said(logging.Handler):
    """What a library logs as a warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    @property
    def text(self) -> str:
        return " ".join(dict.fromkeys(self.texts))


#: Whose warnings are about the user's run; what others say is passed on.
LIBRARIES = ("peft", "transformers", "bitsandbytes", "accelerate")


@contextlib.contextmanager
def warnings_heard(hear: Callable[[str, str], None]) -> Iterator[None]:
    """Hands ``(library, text)`` of each warning, raised or logged, to ``hear`` in the place of the
    terminal."""
    loggers = {name: logging.getLogger(name) for name in LIBRARIES}
    kept = {name: (list(one.handlers), one.level, one.propagate) for name, one in loggers.items()}
    shown: Any = warnings.showwarning

    def show(message: Any, *about: Any, **more: Any) -> None:
        library = _warning_library()
        if library:
            hear(library, str(message))
        else:
            shown(message, *about, **more)

    for name, one in loggers.items():
        one.handlers[:] = [_Handed(name, hear)]
        one.setLevel(logging.WARNING)
        one.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            yield
    finally:
        for name, one in loggers.items():
            one.handlers[:], one.propagate = kept[name][0], kept[name][2]
            one.setLevel(kept[name][1])


class _Handed(logging.Handler):
    """Hands what a library logs as a warning on."""

    def __init__(self, library: str, hear: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._library, self._hear = library, hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(self._library, record.getMessage())


def _warning_library() -> str:
    """Whose code is warning: a warning names the file of its caller, so the frames are asked."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if name in LIBRARIES:
            return name
        frame = frame.f_back
    return ""


@contextlib.contextmanager
def heard() -> Iterator[Said]:
    """Collects what transformers logs; nothing of it is printed."""
    from transformers.utils import logging as library

    once: Any = getattr(logging.Logger, "warning_once", None)
    if hasattr(once, "cache_clear"):
        once.cache_clear()  # it says each sentence once in a process
    root, level, said = library.get_logger(), library.get_verbosity(), Said()
    handlers = list(root.handlers)
    root.handlers[:] = [said]
    library.set_verbosity_warning()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        root.handlers[:] = handlers
        library.set_verbosity(level)


@contextlib.contextmanager
def as_with_a_gpu() -> Iterator[None]:
    """A torch that answers as on a machine with a GPU: quantizers ask it before they ask for their
    packages, and which packages a run on a GPU lacks is known without one. Nothing is computed."""
    import torch

    if torch.cuda.is_available():
        yield
        return
    kept = torch.cuda.is_available, torch.cuda.get_device_capability
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda device=None: _CAPABILITY
    try:
        yield
    finally:
        torch.cuda.is_available, torch.cuda.get_device_capability = kept
