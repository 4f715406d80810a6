"""What one task leaves for the next: the tiny model and its batch, in a file.

Two to four tasks of a case need the same tiny model, and finding the sizes that a class can be
built with, and a batch that it takes, is most of what some of them cost. The file is a pickle: it
is written and read in the child process only, by tasks that run the same model's code anyway.

A file that is not there, or cannot be written or read, is no error: the model is made anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor.sandbox.temporary import TemporaryFolder

if TYPE_CHECKING:
    from lora_doctor.recipe.edit import Patch
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.static.model_source import ModelSource

#: Keys of a recipe that decide which class is built, and how.
_KEYS = ("model_class", "task_type", "attn_implementation")


class TinyModelCache:
    """A private folder, made when first asked for; :meth:`close` removes it, at the latest the end
    of the process."""

    def __init__(self) -> None:
        self._folder: TemporaryFolder | None = None

    def close(self) -> None:
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def file(self, source: ModelSource, recipe: Recipe, patches: Sequence[Patch]) -> str:
        """Where the tiny model of this source, as this recipe loads it, is or will be."""
        if self._folder is None:
            self._folder = TemporaryFolder()
        values = [recipe.get(key) for key in _KEYS]
        key = [source.to_json(), values, [patch.to_json() for patch in patches]]
        import hashlib

        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        return str(self._folder.path / f"{digest[:16]}.pt")


def write(file: str, value: Any) -> None:
    """Keep a tiny model with its batch, where it can be pickled."""
    import torch

    unfinished = f"{file}.{os.getpid()}"
    try:
        torch.save(value, unfinished)
        os.replace(unfinished, file)
    except Exception:  # noqa: BLE001 - hooks and patches that are closures: made anew then
        Path(unfinished).unlink(missing_ok=True)


def read(file: str) -> Any:
    """What :func:`write` kept; ``None`` where there is nothing that can be read."""
    import torch

    if not os.path.exists(file):
        return None
    try:
        return torch.load(file, map_location="cpu", weights_only=False)
    except Exception:  # noqa: BLE001 - a class that comes out otherwise than it went in: made anew
        return None
