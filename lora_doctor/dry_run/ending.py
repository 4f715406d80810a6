"""The end of a command and of all that it has started: by us, or by a watcher when we are gone.

What has left the process tree of the command still carries the session in its environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_doctor.guest.session import Session
from lora_doctor.sandbox import memory

#: Seconds that processes get to end by themselves.
_GRACE_SECONDS = 3.0
#: What a watcher reads when there is nothing left to watch.
_ENDED = b"ended"
#: Looks for what is left when we are gone, and seconds between them: one may be starting another.
_LOOKS, _BETWEEN = 5, 0.2
_ROOT = "root"
_PACKAGES = Path(__file__).absolute().parent.parent.parent
_WATCH = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from lora_doctor.dry_run.ending import watch; watch(sys.argv[2])"
)


@contextlib.contextmanager
def watched(session: Session) -> Iterator[None]:
    """For the length of a ``with``: if this process is killed, everything of the session is ended
    and its folder removed, by a process that waits for nothing else."""
    watcher = subprocess.Popen(
        [sys.executable, "-c", _WATCH, str(_PACKAGES), str(session.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=os.name == "posix",
    )
    assert watcher.stdin is not None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it was killed itself
            watcher.stdin.write(_ENDED)
        with contextlib.suppress(OSError):
            watcher.stdin.close()
        watcher.wait()


def watch(folder: str) -> None:
    """What the watcher does: wait until its standard input ends, which it also does when the other
    end is gone, whatever ended it."""
    if sys.stdin.buffer.read() == _ENDED:
        return
    session = Session(Path(folder), "")
    for _ in range(_LOOKS):
        left = _with_children(session)
        for one in left:
            _send(one, getattr(signal, "SIGKILL", signal.SIGTERM))
        if not left:
            break
        time.sleep(_BETWEEN)
    shutil.rmtree(session.folder, ignore_errors=True)


def _with_children(session: Session) -> list[Any]:
    """Processes of the session and below, whatever their environment has become."""
    import psutil

    found: dict[int, Any] = {}
    for one in of_session(session):
        found[one.pid] = one
        with contextlib.suppress(psutil.Error):
            found.update({child.pid: child for child in one.children(recursive=True)})
    found.pop(os.getpid(), None)
    return list(found.values())


def _send(process: Any, number: int) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def end_all(process: subprocess.Popen[bytes], session: Session) -> None:
    """End the command, its group, and whatever else carries the session's name."""
    import psutil

    # What has left the tree has the session in its environment; what is in it may have none.
    below = memory.process_tree(process.pid)[1:]
    others = [one for one in of_session(session) if one.pid not in (process.pid, os.getpid())]
    for number in set(below) - {one.pid for one in others}:
        with contextlib.suppress(psutil.Error):
            others.append(psutil.Process(number))
    for ask in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        if process.poll() is None:
            _signal_group(process, ask)
        for one in others:
            with contextlib.suppress(psutil.Error):
                one.send_signal(ask)
        psutil.wait_procs(others, timeout=_GRACE_SECONDS if others else 0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    if os.name != "posix":
        process.terminate()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def of_session(session: Session) -> Iterator[Any]:
    """Processes that have left the tree: their environment still names the session, or they are of
    the command's own session of the system (``setsid``), whose number nobody else gets meanwhile.
    """
    import psutil

    root = _root(session)
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (root is not None and os.getsid(one.pid) == root) or session.reaches(one.environ()):
                yield one


def remember_root(session: Session, number: int) -> None:
    """Which process is the command's first one, for whoever ends it."""
    (session.folder / _ROOT).write_text(str(number), encoding="ascii")


def _root(session: Session) -> int | None:
    if not hasattr(os, "getsid"):
        return None
    try:
        return int((session.folder / _ROOT).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # it was not started yet
