"""Folders that the command makes: those that stay empty are taken away again."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting


def prepare(acting: Acting) -> None:
    """Frameworks make their output folder before anything of ours is asked where it is."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "os.mkdir":
            return
        path, _, parent = arguments
        if parent == -1 and isinstance(path, (str, os.PathLike)):
            full = os.path.abspath(os.fspath(path))
            if not isinstance(full, str) or full.startswith(str(acting.session.folder)):
                return
            if not os.path.lexists(full):
                acting.journal.tell("folder", path=full)

    sys.addaudithook(look)


def remove_empty(made: Iterable[str]) -> None:
    """Take away those of the folders in which there is nothing, the innermost first."""
    for path in sorted(set(made), key=len, reverse=True):
        with contextlib.suppress(OSError):  # something is in it, or it is gone
            os.rmdir(path)
