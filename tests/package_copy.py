"""A copy of the package, for tests that add a file to it as a contributor would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import lora_doctor


def copy_package(folder: Path) -> Path:
    """Copy the package, as it would be installed, into a folder; returns the folder."""
    source = Path(lora_doctor.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, folder / "lora_doctor", ignore=ignored)
    return folder


def python(path: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with ``path`` in front of all that is installed."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def lora_doctor_from(path: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line, of the package in ``path`` if there is one."""
    return python(path, "-m", "lora_doctor", *arguments, cwd=cwd)
