"""Whether the compiled part of a package finds in the installed torch what it was linked with.

pip compares the versions of torch and torchvision, and not for which device they were built: beside
a torch for CPUs it takes a torchvision for CUDA. Nothing is loaded: the libraries that a compiled
file asks for stand in it by name.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from lora_doctor.static.installed.environment import package_folder

#: A library of torch's own, as the table of names of a compiled file (ELF) has it.
_LIBRARY = re.compile(rb"\0(lib(?:torch|c10)\w*\.so)(?=\0)")


def absent_libraries(package: str) -> dict[str, list[str]]:
    """The compiled files at the top of a package that ask torch for libraries which it does not
    have, each with these; empty where either is not installed, or has no such files."""
    folder, torch = package_folder(package), package_folder("torch")
    if folder is None or torch is None or not (torch / "lib").is_dir():
        return {}
    there = {path.name for path in (torch / "lib").iterdir()}
    found = {path: sorted(_asked_for(path) - there) for path in sorted(folder.glob("*.so"))}
    return {f"{package}/{path.name}": names for path, names in found.items() if names}


def _asked_for(path: Path) -> set[str]:
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return {name.decode("ascii") for name in _LIBRARY.findall(data)}
    except (OSError, ValueError):  # ValueError: it is empty
        return set()
