"""While a real run lasts: a Python of it that trains without a guest is not let go on.

The interpreter of the command was asked beforehand. What a shell script, or a program that is no
Python, starts with an environment of its own making can only be seen when it runs. A helper that
never loads torch is none of our business.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from lora_doctor.guest.carried import Carried
from lora_doctor.guest.children import deaf_option, is_python
from lora_doctor.sandbox import memory

#: Seconds between two looks while the command starts up, how long that is, and seconds after it.
_AT_FIRST, _STARTS, _LATER = 0.25, 120.0, 1.0
#: Seconds that processes get to end by themselves.
_GRACE_SECONDS = 5.0
#: What a process has in its memory that has imported torch.
_TORCH = b"libtorch"
#: Seconds after which a Python is taken for one that trains, where its memory cannot be read.
_OLD_SECONDS = 10.0
_PACKAGES = Path(__file__).absolute().parent.parent.parent
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from lora_doctor.real_run.watch import watch; watch(int(sys.argv[2]), sys.argv[3])"
)


def start(session: Carried) -> None:
    """Start the watcher of this process, which is about to become the command. It is no child of
    it (some programs wait for every child that they have), and ends with it."""
    words = [sys.executable, "-c", _PROGRAM, str(_PACKAGES), str(os.getpid()), session.text()]
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        return
    try:
        os.setsid()
        if not os.fork():
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            os.execv(sys.executable, words)
    finally:
        os._exit(0)


def watch(root: int, text: str) -> None:
    """What the watcher does, until the command has ended."""
    import psutil

    session, began = Carried.read(text), time.monotonic()
    try:
        command = psutil.Process(root)
        judged: set[tuple[int, float, tuple[str, ...]]] = set()
        while command.is_running() and command.status() != psutil.STATUS_ZOMBIE:
            reason = _look(root, session, judged)
            if reason:
                os.write(2, f"lora-doctor: run: {reason}; stopped\n".encode(errors="replace"))
                _end(root)
                return
            started = time.monotonic() - began > _STARTS
            _sleep(command, _LATER if started else _AT_FIRST)
    except psutil.NoSuchProcess:
        return


def _sleep(command: Any, seconds: float) -> None:
    import psutil

    try:
        command.wait(seconds)
    except psutil.TimeoutExpired:
        return


def _look(root: int, session: Carried, judged: set[tuple[int, float, tuple[str, ...]]]) -> str:
    """Why the command has to be stopped; empty while all is well."""
    import psutil

    for number in memory.process_tree(root):
        try:
            process = psutil.Process(number)
            words = process.cmdline()
            key = (number, process.create_time(), tuple(words))
            if not words or key in judged or not is_python(process.exe() or words[0]):
                continue
            reason = _why_deaf(process, words, session)
            if not reason:
                judged.add(key)
            elif _has_torch(process):
                return reason
        except (psutil.Error, OSError):
            continue  # it has ended meanwhile, or is another user's
    return ""


def _why_deaf(process: Any, words: list[str], session: Carried) -> str:
    line = " ".join(words)[:200]
    option = deaf_option(words[1:])
    if option:
        return f"{line} starts Python with {option}, so that no patch is in force in it"
    if not session.reaches(process.environ()):
        return (
            f"{line} was started without the environment of the command, so that no patch is in "
            "force in it"
        )
    return ""


def _has_torch(process: Any) -> bool:
    """Whether a process has loaded torch."""
    maps = Path(f"/proc/{process.pid}/maps")
    if maps.exists():
        return _TORCH in maps.read_bytes()
    return bool(time.time() - process.create_time() > _OLD_SECONDS)


def _end(root: int) -> None:
    """End the command and all below it."""
    import psutil

    there = []
    for number in memory.process_tree(root):
        try:
            there.append(psutil.Process(number))
        except psutil.Error:
            continue
    for one in there:
        _send(one, "terminate")
    for one in psutil.wait_procs(there, timeout=_GRACE_SECONDS)[1]:
        _send(one, "kill")


def _send(process: Any, what: str) -> None:
    import psutil

    try:
        getattr(process, what)()
    except psutil.Error:
        return
