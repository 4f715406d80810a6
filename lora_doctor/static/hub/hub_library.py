"""Where `huggingface_hub` differs between its releases, or says more than we want to hear."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Names of the threads in which the library works for us start with this.
THREAD = "lora-doctor-hub"


def root_cause(error: BaseException) -> str:
    """The innermost reason that the operating system gave, else the outermost message."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        current = current.__cause__ or current.__context__
    for each in reversed(seen):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class _NotOurs(logging.Filter):
    """Keeps the library's warnings ("Retrying in 1s") of our threads off the terminal."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.threadName or "").startswith(THREAD)


_NOT_OURS = _NotOurs()


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log lines for what we fetch; the user's own stay as they are."""
    from huggingface_hub import utils

    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_NOT_OURS)  # stays: a late thread may still have something to say
    were_on = not utils.are_progress_bars_disabled()
    if were_on:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        # The environment variable decides for itself, and enabling against it only warns.
        if were_on and os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
            utils.enable_progress_bars()
