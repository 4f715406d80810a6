"""Where `huggingface_hub` differs between its releases, or says more than we want to hear."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_doctor.errors import EvidenceError
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


def refuse_names_out_of_the_cache() -> None:
    """Let the library's downloads in this process fail where a server names a file `../`.

    The library puts the `ETag` of an answer behind the folder of its cache, as it is. Its sessions
    are made anew by a factory, which is where each answer can be looked at before it.
    """
    import huggingface_hub
    from huggingface_hub.utils import _http

    configure = getattr(huggingface_hub, "set_client_factory", None)
    if configure is not None:  # hub 1 and later: httpx
        make_client = _http.default_client_factory

        def client() -> Any:
            made = make_client()
            hooks = made.event_hooks
            made.event_hooks = {**hooks, "response": [*hooks.get("response", ()), _check_names]}
            return made

        configure(client)
        return
    make_session = _http._default_backend_factory

    def session() -> Any:
        made = make_session()
        made.hooks["response"].append(lambda response, **_: _check_names(response))
        return made

    huggingface_hub.configure_http_backend(session)


def _check_names(response: Any) -> None:
    for name in _NAMES:
        value = response.headers.get(name)
        if value is not None and not _HASH.fullmatch(value):
            raise EvidenceError(
                f"the server sends {shown(value)} as {name}, which is no file name", remedy="hub"
            )


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
