"""Asking a library what it would do: what it logs meanwhile is kept, and it can be asked as on a
machine with a GPU.

Runs where torch and transformers are imported.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
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
