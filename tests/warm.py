"""Processes that start warm: forked from one that has made the imports already.

A test that calls the command line starts a Python for it and, where model code runs, one for the
sandbox, which imports torch, transformers and peft: six seconds of processor time, in hundreds of
tests. Here each of the two is forked from a process that has made these imports and has done
nothing else (`tests.warm_server`): a real process, with arguments, environment, working directory,
descriptors, session, exit code and signals of its own. What it runs, and from where, is unchanged.

Where a fork would not be the same (other variables that are read by imports, other imports, a
folder whose modules must not be imported, another Python, a GPU), and outside of Linux, the process
is started as always.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO, Any

from lora_doctor.sandbox import process, worker
from tests.warm_server import COMMAND_LINE, ROOT

#: Variables that nothing reads while it is imported, and in which forks may therefore differ.
_READ_LATER = {
    "TMPDIR", "TEMP", "TMP", "NO_COLOR", "COLUMNS", "LINES", "PWD", "OLDPWD", "PYTHONPATH", "CI",
    "GITHUB_ACTIONS",
    "TORCHINDUCTOR_CACHE_DIR",  # set by torch itself where it is imported
}  # fmt: skip
_READ_LATER_PREFIXES = ("PYTEST_", "LORA_DOCTOR_")
# As in `process.py`: nothing of the working directory, and our folder only for our own imports.
_BOOT = (
    "import sys; sys.path[:] = [sys.argv[1], *filter(None, sys.path)]; "
    "import tests.warm_server as w; del sys.path[0]; w.serve(sys.argv[2])"
)


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables in which two environments have to agree."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _READ_LATER and not name.startswith(_READ_LATER_PREFIXES)
    }


@dataclass(frozen=True)
class Place:
    """Where processes are forked: the path of a socket, the process that listens there, and the
    variables that its imports have read."""

    address: str
    pid: int
    fixed: Mapping[str, str]

    def fits(self, environment: Mapping[str, str], folder: Path) -> bool:
        """Whether a process with this environment, started in this folder, would import what that
        one has imported, or should at least (see `_hides_modules`)."""
        places = environment.get("PYTHONPATH", "").split(os.pathsep)
        usual = _fixed(environment) == self.fixed and all(one in ("", ROOT) for one in places)
        return usual and not _hides_modules(folder)


def _hides_modules(folder: Path) -> bool:
    """Whether the folder has a module of a name that is to be imported from elsewhere: that this
    one is not imported shows in a process only that makes its imports."""
    if str(folder) == ROOT:
        return False
    names = {entry.stem for entry in folder.iterdir() if entry.is_dir() or entry.suffix == ".py"}
    path = [entry for entry in sys.path if entry not in ("", str(folder))]
    return bool(names & sys.stdlib_module_names) or any(
        PathFinder.find_spec(name, path) is not None for name in names
    )


class Forked:
    """A process that was forked elsewhere, for as much as is needed of a `subprocess.Popen`.

    request: see `warm_server`. log: the descriptor for its standard error; None: a pipe.
    """

    def __init__(self, place: Place, request: Mapping[str, Any], log: int | None = None) -> None:
        self.returncode: int | None = None
        read_in, write_in = os.pipe()
        read_out, write_out = os.pipe()
        read_err, write_err = os.pipe() if log is None else (None, log)
        self.stdin = os.fdopen(write_in, "wb", buffering=0)
        self.stdout = os.fdopen(read_out, "rb", buffering=0)
        self.stderr = os.fdopen(read_err, "rb", buffering=0) if read_err is not None else None
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.connect(place.address)
            socket.send_fds(self._connection, [b"!"], [read_in, write_out, write_err])
            self._connection.sendall(json.dumps(dict(request)).encode())
            self._connection.shutdown(socket.SHUT_WR)
            self.pid = int(self._line())
        finally:
            for descriptor in (read_in, write_out, *([write_err] if log is None else [])):
                os.close(descriptor)

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            sign = self._connection.recv(1)
            if not sign:
                raise OSError("the process that forks has ended")
            line += sign
        return line

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("lora-doctor", timeout or 0.0)
            self.returncode = int(self._line())
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Server:
    """A process that forks, started when it is first asked for; it ends with us.

    imports: what it imports at the first fork. environment: of its forks, in all that imports read.
    """

    def __init__(self, imports: Sequence[str], environment: Mapping[str, str]) -> None:
        self._imports, self._fixed = tuple(imports), _fixed(environment)
        self._place: Place | None = None
        self._end = contextlib.ExitStack()
        self._folder = self._end.enter_context(tempfile.TemporaryDirectory(prefix="warm-"))

    def place(self, sandbox: Place | None = None) -> Place:
        if self._place is None:
            address = str(Path(self._folder, "socket"))
            log = Path(self._folder, "log")  # of its imports
            with socket.socket(socket.AF_UNIX) as listener, log.open("wb") as output:
                listener.bind(address)
                listener.listen(64)
                settings = {
                    "imports": self._imports,
                    "listener": listener.fileno(),
                    "sandbox": asdict(sandbox) if sandbox else None,
                }
                running = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, ROOT, json.dumps(settings)],
                    stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
                    pass_fds=[listener.fileno()], env={**self._fixed, "TMPDIR": self._folder},
                )  # fmt: skip
            self._place = Place(address, running.pid, self._fixed)
            self._end.callback(running.wait, 10)
            assert running.stdin is not None
            self._end.callback(running.stdin.close)
        return self._place

    def close(self) -> None:
        self._end.close()
        self._place = None


def fork_sandboxes(place: Place | Callable[[], Place]) -> None:
    """From now on sandboxes of this process are forked where that changes nothing."""
    cold = process.start_python

    def start_python(root: str, setup: dict[str, Any], env: dict[str, str], log: IO[bytes]) -> Any:
        usual = setup["fork"] and not setup["cuda"] and tuple(setup["preload"]) == worker.PRELOAD
        if not usual or root != ROOT:
            return cold(root, setup, env, log)
        # Where this fails (the working directory is gone, imports ended the process that forks), a
        # process of its own tells what there is to tell.
        with contextlib.suppress(OSError):
            where = place if isinstance(place, Place) else place()
            if where.fits(env, Path.cwd()):
                # Its parent, whose end ends it, is the process that forks.
                text = json.dumps({**setup, "parent": where.pid})
                request = {"env": env, "cwd": os.getcwd(), "setup": text}
                return Forked(where, request, log.fileno())
        return cold(root, setup, env, log)

    process.start_python = start_python


class Warm:
    """Both servers of a test session."""

    def __init__(self) -> None:
        environment = worker._environment(offline=True, cuda=False, threads=1)
        self._sandbox = Server(("lora_doctor.sandbox.child", *worker.PRELOAD), environment)
        self._command_line = Server(COMMAND_LINE, os.environ)

    def command_line(self) -> Place:
        return self._command_line.place(self._sandbox.place())

    def sandbox(self) -> Place:
        return self._sandbox.place()

    def close(self) -> None:
        self._command_line.close()
        self._sandbox.close()


#: Of this test session; None where processes are started as always.
current: Warm | None = None


@contextlib.contextmanager
def warm_processes() -> Iterator[None]:
    """Sandboxes of this process, and the command line where tests call it, start warm."""
    global current
    if sys.platform != "linux":
        yield
        return
    cold = process.start_python
    current = Warm()
    fork_sandboxes(current.sandbox)
    try:
        yield
    finally:
        process.start_python = cold
        current.close()
        current = None


def run(
    python: str | Path,
    arguments: Sequence[str],
    *,
    cwd: Path | None,
    env: Mapping[str, str],
    stdin: str,
    timeout: float,
) -> tuple[int, str, str]:
    """``python -m lora_doctor ARGUMENTS``: its exit code, and what it wrote to both streams.

    Raises subprocess.TimeoutExpired; the process is then killed.
    """
    folder = Path(cwd or Path.cwd()).absolute()
    where = current.command_line() if current is not None else None
    if where is None or str(python) != sys.executable or not where.fits(env, folder):
        done = subprocess.run(
            [str(python), "-m", "lora_doctor", *arguments],
            cwd=cwd, env=env, input=stdin, capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr
    request = {"env": dict(env), "cwd": str(folder), "arguments": list(arguments)}
    forked = Forked(where, request)
    written: dict[str, bytes] = {}

    def read(name: str, stream: IO[bytes]) -> None:
        with stream:
            written[name] = b"".join(iter(lambda: stream.read(1 << 16), b""))

    assert forked.stderr is not None
    streams = {"out": forked.stdout, "err": forked.stderr}
    readers = [threading.Thread(target=read, args=item, daemon=True) for item in streams.items()]
    for reader in readers:
        reader.start()
    with contextlib.suppress(BrokenPipeError), forked.stdin:
        forked.stdin.write(stdin.encode())
    try:
        code = forked.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(forked.pid, 9)
        forked.wait()
        raise
    for reader in readers:
        reader.join()
    return code, written["out"].decode(), written["err"].decode()
