"""Silence around steps of training that are none."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Without warnings, and without messages of the libraries up to ``level``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(max(level, previous))
        try:
            yield
        finally:
            logging.disable(previous)
