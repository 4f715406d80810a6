"""One answer of a server, read up to a number of bytes and a deadline; no more ever arrives.

The hub's library reads whole answers, unpacks them and retries: an endless body or a page that
unpacks to gigabytes fills the memory or the user's cache. Only its session (proxies, certificates,
the rule that a token stays with its host) is used here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import check_bytes
from lora_doctor.static.hub.deadline import Deadline


@dataclass(frozen=True)
class Answer:
    """Status, headers (names in lower case) and content; the content of a refusal is not read."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Allowance:
    """Bytes that several answers, read in threads, may have together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._used = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Count bytes that have come; LimitError when they are more than are allowed."""
        with self._lock:
            self._used += count
            check_bytes(self._used, self.most, "the small files of the repository together")


@dataclass(frozen=True)
class Wanted:
    """`what` is asked for, in words, and how much of it is read.

    With `cut` the first `most` bytes are the answer; otherwise more are an error.
    """

    what: str
    most: int
    cut: bool = False
    allowance: Allowance | None = None


def get(
    session: Any, url: str, headers: Mapping[str, str], deadline: Deadline, wanted: Wanted
) -> Answer:
    """What the server answers to a GET.

    Raises:
        LimitError: the content has more bytes than are wanted, or than the allowance has left.
        EvidenceError: the content is cut off, or packed though that was not asked for.
        TimeoutError: the deadline passed. The session raises errors of its own.
    """
    what, most, cut = wanted.what, wanted.most, wanted.cut
    asked = {**headers, "Accept-Encoding": "identity"}
    with _stream(session, url, asked, deadline.left) as (response, chunks):
        status = int(response.status_code)
        given = {str(name).lower(): str(value) for name, value in response.headers.items()}
        if status not in (200, 206):
            return Answer(status, given, b"")
        if given.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise EvidenceError(f"{what} is sent compressed, which was not asked for", remedy="hub")
        announced = given.get("content-length", "")
        size = int(announced) if announced.isdecimal() and len(announced) < 19 else None
        if size is not None and not cut:
            check_bytes(size, most, what)
        content = bytearray()
        for chunk in chunks:
            if deadline.passed:
                raise TimeoutError
            content += chunk
            if cut and len(content) >= most:
                break
            check_bytes(len(content), most, what)
            if wanted.allowance is not None:
                wanted.allowance.take(len(chunk))
        if not cut and size is not None and len(content) < size:
            raise EvidenceError(
                f"{what} is cut off after {len(content):,} of {size:,} bytes", remedy="hub"
            )
    return Answer(status, given, bytes(content[:most]))


@contextmanager
def _stream(
    session: Any, url: str, headers: Mapping[str, str], timeout: float
) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """A response whose body is read piece by piece as it comes, never unpacked: by httpx (hub 1 and
    later) or requests."""
    if callable(getattr(session, "stream", None)):  # requests has a flag of that name
        with session.stream(
            "GET", url, headers=headers, timeout=timeout, follow_redirects=True
        ) as response:
            yield response, response.iter_raw()
    else:
        with closing(session.get(url, headers=headers, timeout=timeout, stream=True)) as response:
            yield response, response.raw.stream(65_536, decode_content=False)
