"""What a guest tells its session: one record a line, in a file of this process.

A file and not a stream: progress bars swallow lines of standard error.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

from lora_doctor.guest.session import Session


class Journal:
    """Appends records; safe in threads, and in forks, which write files of their own."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.RLock()
        self._told: list[dict[str, Any]] = []

    def tell(self, kind: str, **values: Any) -> None:
        """Write one record; ``values`` are plain data."""
        record = {"kind": kind, "time": time.time(), "pid": os.getpid(), **values}
        line = json.dumps(record, default=repr) + "\n"
        self._told.append(record)
        path = self._session.records / f"{os.getpid()}.jsonl"
        with self._lock, open(path, "a", encoding="utf-8", errors="replace") as file:
            file.write(line)

    def told(self, kind: str) -> list[dict[str, Any]]:
        """The records of this kind that were written here, oldest first."""
        return [record for record in self._told if record["kind"] == kind]
