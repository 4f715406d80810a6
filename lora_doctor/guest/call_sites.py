"""Which line of the user's own files is behind a call or an exception."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from dataclasses import dataclass
from types import FrameType, TracebackType

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True)
class Place:
    """A line of a file; ``function`` is what runs there."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


#: Files that have another name for people: those that IPython makes of cells.
renamed: dict[str, str] = {}


@functools.lru_cache(maxsize=1)
def _of_libraries() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    bases = {os.path.realpath(paths[name]) for name in names if name in paths}
    bases |= {paths[name] for name in names if name in paths}
    return tuple(sorted(os.path.join(base, "") for base in bases))


@functools.lru_cache(maxsize=4096)
def is_of_user(file: str) -> bool:
    """Whether a file is neither of Python, nor of an installed package, nor ours."""
    if not file or file.startswith(("<", _OURS)):
        return False
    path = os.path.abspath(file)
    installed = f"{os.sep}site-packages{os.sep}" in path or f"{os.sep}dist-packages{os.sep}" in path
    return not installed and not path.startswith((*_of_libraries(), _OURS))


def is_of_guest(file: str) -> bool:
    """Whether a file is ours."""
    return file.startswith(_OURS)


def caller() -> Place | None:
    """The innermost line of the user's that led here; ``None`` where a library did so alone."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_of_user(frame.f_code.co_filename):
            file = frame.f_code.co_filename
            return Place(renamed.get(file, file), frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back
    return None


def of_traceback(trace: TracebackType | None) -> tuple[list[Place], list[Place]]:
    """All frames of a traceback, outermost first, and those of them that are the user's."""
    every: list[Place] = []
    own: list[Place] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(_OURS):
            file = renamed.get(code.co_filename, code.co_filename)
            every.append(Place(file, trace.tb_lineno, code.co_name))
            if is_of_user(code.co_filename):
                own.append(every[-1])
        trace = trace.tb_next
    return every, own
