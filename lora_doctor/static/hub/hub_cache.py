"""Files put into the hub's cache, whole and under names that we know.

`huggingface_hub` names a file after its `ETag` and links to it; a server that sends `../` there
makes it write somewhere else. Where links are not possible (Windows) it keeps the file itself in
the snapshot's folder, which every release reads: that is the form that is written here.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path, PurePosixPath

from lora_doctor.errors import InputError

COMMIT = re.compile(r"[0-9a-f]{40}")


def snapshot_folder(cache: Path, model_id: str, commit: str) -> Path:
    """Where the files of one commit lie. `model_id` and `commit` have been checked."""
    return _repository(cache, model_id) / "snapshots" / commit


def store(cache: Path, model_id: str, commit: str, name: str, content: bytes) -> Path:
    """Put a file into the snapshot; `name` is relative, with `/`, and has been checked.

    Raises:
        InputError: the cache cannot be written.
    """
    path = snapshot_folder(cache, model_id, commit).joinpath(*PurePosixPath(name).parts)
    _write(path, content, cache)
    return path


def remember(cache: Path, model_id: str, revision: str, commit: str) -> None:
    """Note what a branch or tag means, so that the cache can answer for it without the hub.

    Raises:
        InputError: the cache cannot be written.
    """
    if revision != commit:
        path = _repository(cache, model_id).joinpath("refs", *PurePosixPath(revision).parts)
        _write(path, commit.encode(), cache)


def _repository(cache: Path, model_id: str) -> Path:
    return cache / f"models--{model_id.replace('/', '--')}"


def _write(path: Path, content: bytes, cache: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".incomplete", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise InputError(
            f"the hub's cache {str(cache)!r} cannot be written: {error.strerror or error}; "
            "set HF_HUB_CACHE to another folder"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
