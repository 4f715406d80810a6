"""Where `huggingface_hub` differs between its releases, or says more than we want to hear."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import check_bytes
from lora_doctor.static.piece import shown

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


#: What the library makes file names of: a hash, quoted, perhaps marked as weak.
_HASH = re.compile(r'(?:W/)?"?[A-Za-z0-9_=+-]{1,200}"?')
_NAMES = ("ETag", "X-Linked-Etag", "X-Repo-Commit", "X-Xet-Hash")
#: How many bytes will come. What is fetched by Xet instead has as many as the last one says.
_SIZES = ("Content-Length", "X-Linked-Size")
_DIGITS = 20


class Downloads:
    """What the library's own downloads in this process may take: `most` bytes, all together.

    The library believes what a server says of a file's size, and reads an answer without one to its
    end, into the user's cache.
    """

    def __init__(self, most: int, why: str) -> None:
        self.most, self.why = most, why
        self._used = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Count bytes that have come. Raises LimitError when they are more than are allowed."""
        with self._lock:
            self._used += count
            self._refuse(self._used)

    def counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces of an answer, unpacked, each counted before the library has it."""
        for piece in pieces:
            self.take(len(piece))
            yield piece

    def check(self, response: Any) -> None:
        """Raises EvidenceError where an answer names a file `../`, or announces too many bytes."""
        for name in _NAMES:
            value = response.headers.get(name)
            if value is not None and not _HASH.fullmatch(value):
                raise EvidenceError(
                    f"the server sends {shown(value)} as {name}, which is not a file name",
                    remedy="hub",
                )
        for name in _SIZES:
            value = response.headers.get(name) or ""
            if value.isdecimal():
                self._refuse(int(value[:_DIGITS]))

    def _refuse(self, size: int) -> None:
        check_bytes(size, self.most, "what the server sends", self.why)


def guard_downloads(downloads: Downloads) -> None:
    """Let the library's downloads in this process fail where `downloads` says so.

    The library's sessions are made anew by a factory, which is where each answer can be looked at
    before the library does; it puts the `ETag` of an answer behind the folder of its cache, as it
    is.
    """
    import huggingface_hub
    from huggingface_hub.utils import _http

    configure = getattr(huggingface_hub, "set_client_factory", None)
    if configure is not None:  # hub 1 and later: httpx
        make_client = _http.default_client_factory

        def look(response: Any) -> None:
            downloads.check(response)
            unpacked = response.iter_bytes
            response.iter_bytes = lambda *sizes, **named: downloads.counted(
                unpacked(*sizes, **named)
            )

        def client() -> Any:
            made = make_client()
            hooks = made.event_hooks
            made.event_hooks = {**hooks, "response": [*hooks.get("response", ()), look]}
            return made

        configure(client)
        return
    make_session = _http._default_backend_factory

    def look_at(response: Any, **_: Any) -> None:
        downloads.check(response)
        unpacked = response.raw.stream
        response.raw.stream = lambda *sizes, **named: downloads.counted(unpacked(*sizes, **named))

    def session() -> Any:
        made = make_session()
        made.hooks["response"].append(look_at)
        return made

    huggingface_hub.configure_http_backend(session)


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
