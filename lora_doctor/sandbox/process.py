"""One child process: its pipes, its log, its end. Knows nothing of tasks and limits.

The side of the caller; `child.py` is the other one, `task.py` has the limits of a task.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from lora_doctor.errors import InputError
from lora_doctor.sandbox import memory
from lora_doctor.sandbox.messages import checked
from lora_doctor.sandbox.temporary import TemporaryFolder

LOG_TAIL_BYTES = 16 * 1024  # what a failure carries of the child's stdout and stderr
LOG_FILE_BYTES = 4 * 1024 * 1024  # beyond this the log file is cut down to its tail
GRACE_SECONDS = 2.0  # how long a child may take to die before it is killed by group
LAST_MESSAGE_SECONDS = 0.5  # how long the messages of a process that has ended are waited for
STACK_SECONDS = 0.1  # what faulthandler gets to write a stack before the task is killed
STACK_MARK = "--- lora-doctor: where the task was when it was stopped ---"

# Run by `python -c`, not `-m`: the checkout that we were imported from must win over another
# `lora_doctor` in the working directory, and nothing of the working directory (it may be a
# downloaded model repository with a torch.py in it) may be imported before somebody asked for it.
_BOOT = (
    "import sys; sys.path[:] = [sys.argv[1], *filter(None, sys.path)]; "
    "import lora_doctor.sandbox.child as w; del sys.path[0]; w.main(sys.argv[2])"
)


def start_python(
    root: str, setup: dict[str, Any], env: dict[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """A Python that runs `child.main`, its pipes unbuffered. ``root``: the folder that
    `lora_doctor` is imported from. Raises OSError."""
    return subprocess.Popen(
        [sys.executable, "-c", _BOOT, root, json.dumps(setup)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        bufsize=0,
        env=env,
        # Its own session: Ctrl-C at the terminal reaches us only, and we decide.
        start_new_session=os.name == "posix",
    )


class ChildProcess:
    """A process that runs `child.main` with this setup, started at once and never waited for.

    What it puts into temporary files lies in a folder of its own, which goes with it, however it
    ends. Raises InputError when there is no place for that, or no process can be started.
    """

    def __init__(self, setup: dict[str, Any], env: dict[str, str], *, fork: bool) -> None:
        root = str(Path(__file__).absolute().parents[2])
        setup = {
            **setup,
            "fork": fork,
            "parent": os.getpid(),
            # what the caller added at run time (a script's folder, --rules DIR)
            "path": [os.path.abspath(entry) for entry in sys.path if entry],
        }
        self.fork = fork
        self.ready = False
        self.importing = ""
        self.import_seconds = 0.0
        self.folder = TemporaryFolder()
        try:
            self._start(root, setup, env)
        except OSError as error:
            self.folder.remove()
            raise InputError(
                f"a child process cannot be started: {error.strerror or error}; model code runs in "
                "one, --depth static needs none"
            ) from error

    def _start(self, root: str, setup: dict[str, Any], env: dict[str, str]) -> None:
        self.log: IO[bytes] = open(  # noqa: SIM115 - closed in kill()
            self.folder.path / "log", "w+b", buffering=0
        )
        place = self.folder.path / "files"
        place.mkdir()
        env = {**env, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(place))}
        if os.name == "posix":
            import fcntl

            # Appending, so that cutting the file down does not leave a hole at its start.
            fcntl.fcntl(self.log, fcntl.F_SETFL, fcntl.fcntl(self.log, fcntl.F_GETFL) | os.O_APPEND)
        self.process = start_python(root, setup, env, self.log)
        self.messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(
            target=self._read, args=(self.process.stdout, self.messages), daemon=True
        ).start()

    @staticmethod
    def _read(
        stream: IO[bytes], messages: queue.SimpleQueue[dict[str, Any] | None]
    ) -> None:  # a static method: the thread must not keep the worker alive
        parts: list[bytes] = []
        while chunk := stream.read(1 << 16):
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                try:
                    message = checked(json.loads(b"".join([*parts, line])))
                except (ValueError, RecursionError):
                    message = None  # the half line of a killed task, or a stray print at start-up
                parts = []
                if message is not None:
                    messages.put(message)
            parts.append(rest)
        stream.close()
        messages.put(None)

    def send(self, request: dict[str, Any]) -> bool:
        """False when nobody reads any more."""
        assert self.process.stdin is not None
        data = json.dumps(request).encode() + b"\n"
        try:
            while data:
                data = data[self.process.stdin.write(data) :]
        except (OSError, ValueError):  # ValueError: closed by kill()
            return False
        return True

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next message; {} when there is none in time; None when the process has ended."""
        try:
            return self.messages.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            if self.process.poll() is None:
                return {}
        # Ended, maybe since the queue was looked at: then its last message is still on the way. No
        # longer than a moment, for a process that it has forked may hold the pipe open.
        try:
            return self.messages.get(timeout=LAST_MESSAGE_SECONDS)
        except queue.Empty:
            return None

    def log_size(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def log_tail(self, start: int = 0) -> str:
        """The last of what was written to stdout and stderr since byte `start` of the log."""
        size = self.log_size()
        if start > size:  # it was cut down since
            start = 0
        start = max(start, size - LOG_TAIL_BYTES)
        if os.name == "posix":
            data = os.pread(self.log.fileno(), size - start, start)
        else:
            self.log.seek(start)
            data = self.log.read()
        return data.decode("utf-8", "replace")

    def trim_log(self) -> None:
        if os.name == "posix" and self.log_size() > LOG_FILE_BYTES:
            tail = self.log_tail().encode()
            os.ftruncate(self.log.fileno(), 0)
            os.write(self.log.fileno(), b"[cut]\n" + tail)

    def wait(self, timeout: float) -> int | None:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self, identity: int, *, stack: bool) -> None:
        """End the running task; with `stack`, after its Python stack has gone to the log."""
        if self.fork:
            self.send({"stop": identity, "stack": stack})
            return
        if stack and os.name == "posix":
            os.write(self.log.fileno(), f"\n{STACK_MARK}\n".encode())
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(STACK_SECONDS)
        _kill_tree(self.process.pid)

    def kill(self, task: int | None = None) -> None:
        """End the process, the task (its process id, where forked) and what they started."""
        if self.process.stdin is not None:
            self.process.stdin.close()  # end of requests: the worker kills its task and ends
        if not (self.fork and self.ready and self.wait(GRACE_SECONDS) == 0):
            _kill_tree(self.process.pid)
            if task is not None:
                _kill_tree(task)
            self.process.wait()
        self.log.close()
        self.folder.remove()

    def resident(self, task: int | None, limit: int | None) -> int:
        """Resident memory in bytes of the task (its process id), and of all that it started."""
        if task is None:
            return 0
        if not self.fork:
            return memory.resident(task, limit)
        # The worker is the parent of its task, and of what the task has abandoned.
        return memory.resident(self.process.pid, limit, itself=False)


def _kill_tree(pid: int) -> None:
    """Kill a process that leads its own group, and the group; on Windows, its tree."""
    if os.name != "posix":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], capture_output=True, check=False)
        return
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # PermissionError: only zombies left (macOS)
        return
