"""Data sets that ``datasets`` has prepared before, read where they lie; new ones go elsewhere.

``datasets`` keeps ``NAME/CONFIG/VERSION/HASH`` folders in its cache. Those that are complete are
linked into a folder of the session; what is prepared in the run is written beside the links.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

#: Folders that are linked at most: a cache with more is one of a shared machine.
_MOST = 2000
_COMPLETE = "dataset_info.json"


def cache_of(environment: Mapping[str, str]) -> Path:
    """Where ``datasets`` keeps its cache in this environment."""
    own = environment.get("HF_DATASETS_CACHE")
    if own:
        return Path(own).expanduser()
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or os.path.join(cache, "huggingface")
    return Path(home).expanduser() / "datasets"


def link_prepared(cache: Path, folder: Path) -> None:
    """Link what is prepared in a cache into a folder; a file system without links has none."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        for number, info in enumerate(cache.glob(f"*/*/*/*/{_COMPLETE}")):
            if number == _MOST:
                return
            link = folder / info.parent.relative_to(cache)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(info.parent.absolute(), target_is_directory=True)
