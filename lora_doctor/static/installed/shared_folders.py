"""Several distributions that wrote into the folder of one package: the last one installed won."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from dataclasses import dataclass

from lora_doctor.static.installed.import_chain import FOLLOWED


@dataclass(frozen=True)
class SharedFolder:
    """A package, and the distributions that say it is theirs, by name and version."""

    package: str
    distributions: tuple[str, ...]


@functools.cache
def shared_folders() -> tuple[SharedFolder, ...]:
    """Packages of the training stack that more than one installed distribution brings."""
    owners: dict[str, dict[str, str]] = {package: {} for package in FOLLOWED}
    for found in importlib.metadata.distributions():
        # Without the file a distribution brings what it is called: no fork of another.
        packages = (found.read_text("top_level.txt") or "").split()
        for package in set(packages) & set(owners):
            name = re.sub(r"[-_.]+", "-", found.metadata["Name"] or "").lower()
            # Of two folders with one distribution, the first one on the path is imported.
            owners[package].setdefault(name, found.version)
    return tuple(
        SharedFolder(package, tuple(f"{name} {names[name]}" for name in sorted(names)))
        for package, names in owners.items()
        if len(names) > 1
    )
