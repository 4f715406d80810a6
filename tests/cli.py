"""Run the command line as a user does: a real process, with its output and exit code.

It is forked from one that has made its imports (see `tests.warm`); whatever names another Python or
changes what imports read is started as a user would.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_doctor.static.installed.environment import known_architectures
from tests import warm

ROOT = Path(__file__).resolve().parent.parent

needs_phi3 = pytest.mark.skipif(
    "phi3" not in (known_architectures() or ()), reason="this transformers is older than Phi-3"
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def one_line_error(self) -> str:
        """The single line on stderr; fails when there is a traceback or more than one line."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("lora-doctor: "), lines
        return lines[0]


def lora_doctor(
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
    stdin: str | None = None,
    python: str | Path = sys.executable,
) -> Result:
    """``lora-doctor ARGUMENTS`` in a process of its own; ``python`` decides what is installed."""
    # An empty entry would be the working directory.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", **(env or {})}
    words = list(map(str, arguments))
    return Result(
        *warm.run(python, words, cwd=cwd, env=environment, stdin=stdin or "", timeout=timeout)
    )


def completed(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same with ``variables`` in its environment; the result is as of ``subprocess.run``."""
    result = lora_doctor(*arguments, cwd=cwd, env=variables)
    return subprocess.CompletedProcess(arguments, result.code, result.out, result.err)


def environment_without(folder: Path, *packages: str) -> Path:
    """The Python of an environment that has all of this one but these packages."""
    venv.EnvBuilder(symlinks=True).create(folder)
    [site] = folder.glob("lib/python*/site-packages")
    missing = tuple(name.lower() for name in packages)
    # All places that this one imports from: what a .pth file adds would bring the packages back.
    for place in (Path(entry) for entry in sys.path if entry.endswith("site-packages")):
        for entry in place.iterdir():
            name = entry.name.lower().split("-")[0].split(".")[0]
            if name not in missing and entry.suffix != ".pth" and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"
