"""Processes that start warm: forked from one that has made the imports already.

A test that calls the command line starts a Python for it and, where model code runs, one for the
sandbox, which imports torch, transformers and peft: six seconds of processor time, in hundreds of
tests. The script of a dry run makes the same imports. Here each of the three is forked from a
process that has made these imports and has done nothing else (`tests.warm_server`): a real process,
with arguments, environment, working directory, descriptors, session, exit code and signals of its
own. What it runs, and from where, is unchanged. For a script the guest of the dry run is in place
before the imports, as it is in a process of its own: only which session it is of is told to the
fork. That a guest comes into a Python of the user's is proved by the probe of every dry run.

Where a fork would not be the same (other variables that are read by imports, other imports, a
folder whose modules must not be imported, another Python, a GPU), and outside of Linux, the process
is started as always.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO, Any

from lora_doctor.dry_run import launch
from lora_doctor.dry_run.command import Command
from lora_doctor.guest.carried import VARIABLE as CARRIED
from lora_doctor.guest.session import SITE, VARIABLE, Session
from lora_doctor.sandbox import process, worker
from tests.warm_server import COMMAND_LINE, ROOT

#: Variables that nothing reads while it is imported, and in which forks may therefore differ.
_READ_LATER = {
    "TMPDIR", "TEMP", "TMP", "NO_COLOR", "COLUMNS", "LINES", "PWD", "OLDPWD", "PYTHONPATH", "CI",
    "GITHUB_ACTIONS",
    "TORCHINDUCTOR_CACHE_DIR",  # set by torch itself where it is imported
}  # fmt: skip
_READ_LATER_PREFIXES = ("PYTEST_", "LORA_DOCTOR_")
#: What the scripts of dry runs import. One that does not import all of it is started as always.
_OF_SCRIPTS = ("transformers", "peft")
#: The session of no dry run: that of the process which scripts are forked from.
_NO_SESSION = "no-session"
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

    request: see `warm_server`. given: descriptors for its standard input, output and error; None:
    a pipe.
    """

    def __init__(
        self,
        place: Place,
        request: Mapping[str, Any],
        given: tuple[int | None, int | None, int | None] = (None, None, None),
    ) -> None:
        self.returncode: int | None = None
        streams, theirs, opened = [], [], []
        for number, descriptor in enumerate(given):
            read, write = os.pipe() if descriptor is None else (descriptor, descriptor)
            its, ours = (read, write) if number == 0 else (write, read)
            theirs.append(its)
            mode = "wb" if number == 0 else "rb"
            streams.append(os.fdopen(ours, mode, buffering=0) if descriptor is None else None)
            opened += [its] if descriptor is None else []
        self.stdin, self.stdout, self.stderr = streams
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.connect(place.address)
            socket.send_fds(self._connection, [b"!"], theirs)
            self._connection.sendall(json.dumps(dict(request)).encode())
            self._connection.shutdown(socket.SHUT_WR)
            self.pid = int(self._line())
        finally:
            for descriptor in opened:
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
    guest: whether scripts of dry runs are forked, so that it imports beside a guest.
    """

    def __init__(
        self, imports: Sequence[str], environment: Mapping[str, str], *, guest: bool = False
    ) -> None:
        self._imports, self._fixed, self._guest = tuple(imports), _fixed(environment), guest
        self._place: Place | None = None
        self._end = contextlib.ExitStack()
        self._folder = self._end.enter_context(tempfile.TemporaryDirectory(prefix="warm-"))

    def place(self, **others: Place) -> Place:
        """others: where its forks fork from in their turn, by what is forked there."""
        if self._place is None:
            address = str(Path(self._folder, "socket"))
            log = Path(self._folder, "log")  # of its imports
            session = self._session()
            with socket.socket(socket.AF_UNIX) as listener, log.open("wb") as output:
                listener.bind(address)
                listener.listen(64)
                settings = {
                    "imports": self._imports,
                    "listener": listener.fileno(),
                    "others": {name: asdict(place) for name, place in others.items()},
                    "session": session,
                }
                running = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, ROOT, json.dumps(settings)],
                    stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
                    pass_fds=[listener.fileno()],
                    env={
                        **self._fixed,
                        "TMPDIR": session or self._folder,
                        "PATH": os.environ["PATH"],
                    },
                )  # fmt: skip
            self._place = Place(address, running.pid, self._fixed)
            self._end.callback(running.wait, 10)
            assert running.stdin is not None
            self._end.callback(running.stdin.close)
        return self._place

    def _session(self) -> str | None:
        if not self._guest:
            return None
        folder = Path(self._folder, _NO_SESSION)
        folder.mkdir()
        Session(folder, "").write()
        return str(folder)

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
                return Forked(where, request, (None, None, log.fileno()))
        return cold(root, setup, env, log)

    process.start_python = start_python


def _without_session(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a dry run's command that are the same in every dry run. The programs of
    ``PATH`` are looked for when they are started."""
    folder = environment[VARIABLE]
    kept = {k: v for k, v in environment.items() if folder not in v and k not in ("PATH", VARIABLE)}
    path = environment.get("PYTHONPATH", "").split(os.pathsep)
    return {**kept, "PYTHONPATH": os.pathsep.join(one for one in path if one != str(SITE))}


#: How a script starts processes.
_STARTS = re.compile(r"\b(?:subprocess|multiprocessing|os\.(?:system|popen|fork|spawn\w*))\b")


def _is_plain_script(words: Sequence[str]) -> bool:
    """Whether the command is ``python SCRIPT`` of a script with all the imports made here, which
    starts no processes: between fork and exec they would show the environment of whom we fork from,
    and a dry run stops for one that is not its own."""
    if len(words) < 2 or words[0] != sys.executable or not words[1].endswith(".py"):
        return False
    text = Path(words[1]).read_text(encoding="utf-8", errors="replace")
    if _STARTS.search(text):
        return False
    return all(re.search(rf"^(from|import) {name}\b", text, re.MULTILINE) for name in _OF_SCRIPTS)


def fork_scripts(place: Place | Callable[[], Place]) -> None:
    """From now on scripts of dry runs of this process are forked where that changes nothing."""
    cold = launch.start

    def start(command: Command, environment: Mapping[str, str], stream: IO[bytes]) -> Any:
        if CARRIED in environment or not _is_plain_script(command.words):
            return cold(command, environment, stream)
        with contextlib.suppress(OSError), open(os.devnull, "rb") as nothing:
            where = place if isinstance(place, Place) else place()
            folder = Path(command.words[1]).absolute().parent
            if where.fits(_without_session(environment), folder):
                words = list(command.words)
                request = {"env": dict(environment), "cwd": os.getcwd(), "script": words}
                log = stream.fileno()
                forked = Forked(where, request, (nothing.fileno(), log, log))
                # A process of its own carries its environment where it is looked for from outside;
                # a fork is known by its guest's answer only.
                answer = Path(environment[VARIABLE], "answers", str(forked.pid))
                while not answer.exists() and forked.poll() is None:
                    time.sleep(0.005)
                return forked
        return cold(command, environment, stream)

    launch.start = start


def _of_dry_runs() -> dict[str, str]:
    """What is the same in the environments of all dry runs that this session starts."""
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder), "")
        return _without_session(launch.environment_of(session, os.environ))


class Warm:
    """The servers of a test session."""

    def __init__(self) -> None:
        environment = worker._environment(offline=True, cuda=False, threads=1)
        self._sandbox = Server(("lora_doctor.sandbox.child", *worker.PRELOAD), environment)
        self._script = Server(_OF_SCRIPTS, _of_dry_runs(), guest=True)
        self._command_line = Server(COMMAND_LINE, os.environ)

    def command_line(self) -> Place:
        return self._command_line.place(sandbox=self.sandbox(), script=self.script())

    def sandbox(self) -> Place:
        return self._sandbox.place()

    def script(self) -> Place:
        return self._script.place()

    def close(self) -> None:
        self._command_line.close()
        self._script.close()
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
    cold = process.start_python, launch.start
    current = Warm()
    fork_sandboxes(current.sandbox)
    fork_scripts(current.script)
    try:
        yield
    finally:
        process.start_python, launch.start = cold
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

    assert forked.stdin is not None and forked.stdout is not None and forked.stderr is not None
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
