"""Stored answers: one file each in the user's cache folder, which only they can read."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.stored import parse_diagnosis

#: All answers together, and one of them, unpacked.
MOST_BYTES = 64 << 20
MOST_ENTRY_BYTES = 32 << 20
MOST_ENTRIES = 500
#: An answer is not found any more after this long.
MOST_SECONDS = 30 * 24 * 3600.0
_ENDING = ".json.gz"


@dataclass(frozen=True)
class Stored:
    """An answer that was found. ``when``: seconds since the epoch."""

    diagnosis: Diagnosis
    when: float


@dataclass(frozen=True)
class CacheStore:
    """Answers in ``folder``."""

    folder: Path

    def get(self, key: str) -> Stored | None:
        """The answer of this key; ``None`` where there is none.

        Raises:
            InputError: there is one that cannot be used; it is taken away.
        """
        path = self.folder / f"{key}{_ENDING}"
        if not path.exists() or not _is_private(self.folder):
            return None
        try:
            found = _read(path, key)
        except (OSError, EOFError, ValueError, KeyError, TypeError, InputError) as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise InputError(f"the stored answer {path} is damaged: {error}") from None
        if not 0 <= time.time() - found.when < MOST_SECONDS:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the oldest go first
        return found

    def put(self, key: str, diagnosis: Diagnosis) -> None:
        """Store an answer, if it can be read back as it is; what cannot be written is no error."""
        text = json.dumps(diagnosis.to_json())
        if text != json.dumps(Diagnosis.from_json(json.loads(text)).to_json()):
            return
        body = {"key": key, "when": time.time(), "sha256": _digest(text), "diagnosis": text}
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(self.folder):
                _write(self.folder / f"{key}{_ENDING}", gzip.compress(json.dumps(body).encode()))
                self._remove_oldest()

    def _remove_oldest(self) -> None:
        entries = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):  # another run has removed it
                entries.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
        size = 0
        for number, (_, length, path) in enumerate(sorted(entries, reverse=True), 1):
            size += length
            if number > MOST_ENTRIES or size > MOST_BYTES:
                with contextlib.suppress(OSError):
                    os.unlink(path)


def user_cache(environment: Mapping[str, str] = os.environ) -> CacheStore:
    """In the user's cache folder: ``$XDG_CACHE_HOME``, else what the system has for it."""
    given = environment.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        base = Path(given)
    elif sys.platform == "win32":
        base = Path(environment.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return CacheStore(base / "lora-doctor" / "answers")


def _read(path: Path, key: str) -> Stored:
    with gzip.open(path) as stream:
        content = stream.read(MOST_ENTRY_BYTES + 1)
    if len(content) > MOST_ENTRY_BYTES:
        raise ValueError("it is too large")
    body: dict[str, Any] = json.loads(content)
    text = body["diagnosis"]
    if body["key"] != key or body["sha256"] != _digest(text):
        raise ValueError("its content is not what was stored")
    return Stored(parse_diagnosis(json.loads(text), str(path)), float(body["when"]))


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all; of two runs that store the same, either is right."""
    number, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")  # mode 0600
    try:
        with os.fdopen(number, "wb") as stream:
            stream.write(data)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _is_private(folder: Path) -> bool:
    """Whether nobody else can have written there."""
    if sys.platform == "win32":
        return True
    status = folder.lstat()
    own = status.st_uid == os.getuid() and stat.S_ISDIR(status.st_mode)
    return own and not status.st_mode & 0o077


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
