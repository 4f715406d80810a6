"""Cache files of ``datasets`` that a caller names and reads again by ``Dataset.from_file``, as TRL
does with the log probabilities of a reference model. None is written beside the user's data."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting

#: Rows that are written at a time.
_ROWS = 1000


class CacheFiles:
    """What was mapped into a file that the caller has named."""

    def __init__(self, acting: Acting) -> None:
        self._folder = acting.session.folder / "datasets"
        self._kept: dict[str, Any] = {}

    def keep(self, named: dict[str, Any], data: Any) -> None:
        """``data`` was made by a ``map`` with these arguments."""
        asked = named.get("cache_file_name")
        if asked is None:
            return
        path = Path(os.path.abspath(os.fspath(asked)))
        if self._folder in path.parents:  # another process may read it
            _write(data, path)
        else:
            self._kept[str(path)] = data

    def path_for(self, fingerprint: str) -> str:
        """The same for all processes, as it is beside a set that lies in a file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return str(self._folder / f"cache-{fingerprint}.arrow")

    def read(self, path: Any) -> Any:
        """What stands in a file of the user's that was not written; ``None`` where it was."""
        return self._kept.get(os.path.abspath(os.fspath(path)))


def prepare(acting: Acting, module: ModuleType) -> CacheFiles:
    """Replace on ``Dataset`` how cache files are named and read. ``module``: of that class."""
    files = CacheFiles(acting)

    def named(original: Any, data: Any, fingerprint: str) -> str:
        return files.path_for(fingerprint)

    def read(original: Any, cls: Any, filename: Any, *more: Any, **options: Any) -> Any:
        kept = files.read(filename)
        return original(filename, *more, **options) if kept is None else kept

    if "_get_cache_file_path" in vars(module.Dataset):
        acting.replaced.around(module.Dataset, "_get_cache_file_path", named)
    acting.replaced.around(module.Dataset, "from_file", read)
    return files


def _write(data: Any, path: Path) -> None:
    writer_class = importlib.import_module("datasets.arrow_writer").ArrowWriter
    rows = data.with_format("arrow")
    with writer_class(features=data.features, path=str(path)) as writer:
        for start in range(0, len(rows), _ROWS):
            writer.write_table(rows[start : start + _ROWS])
        writer.finalize()
