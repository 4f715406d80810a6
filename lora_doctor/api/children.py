"""The child process behind a case: its own, or one that several cases share."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Hashable, Iterator
from contextvars import ContextVar

from lora_doctor.engine.settings import Settings
from lora_doctor.sandbox.worker import PRELOAD_SECONDS, Worker
from lora_doctor.static.model_source import ModelSource

#: Children that are shared, by what they were started with; None where each case has its own.
_SHARED: ContextVar[dict[Hashable, Worker] | None] = ContextVar("shared children", default=None)


@contextlib.contextmanager
def shared_children() -> Iterator[None]:
    """Cases that are opened meanwhile share their child processes, so that only the first waits for
    torch, transformers and PEFT to be imported. Each task still has a fork of its own: what a model
    changes in the libraries does not reach the next case."""
    children: dict[Hashable, Worker] = {}
    before = _SHARED.set(children)
    try:
        yield
    finally:
        _SHARED.reset(before)
        for child in children.values():
            child.close()


@contextlib.contextmanager
def child_for(source: ModelSource, settings: Settings) -> Iterator[Worker]:
    """The child process for this model, not started yet where it is the case's own; then it is
    closed at the end."""
    full = settings.depth == "full"
    on_hub = settings.adapter is not None and settings.adapter.snapshot is not None
    cuda = settings.device in ("cuda", "mps") or (settings.device == "auto" and full)
    # Matrices of a tiny model are so small that a second thread only costs.
    threads = None if full else 1
    limit = max(PRELOAD_SECONDS, settings.limits.longest)
    # Only real weights are fetched by a child; everything else it needs is on disk by then.
    offline = not full or (source.kind != "hub" and not on_hub)

    def started() -> Worker:
        return Worker(cuda=cuda, threads=threads, preload_limit=limit, offline=offline)

    children = _SHARED.get()
    if children is None:
        with started() as own:
            yield own
        return
    # A child starts in the working directory and with the import path of its time.
    key = (cuda, threads, limit, offline, os.getcwd(), tuple(sys.path))
    if key not in children:
        children[key] = started()
    yield children[key]
