"""Start the command, watch it, and end it: nothing is left running, nothing is left behind.

Python processes that have no guest are ended as soon as they are seen. What cannot be caught: the
first hundredth of a second of one that a shell script starts with a cleared environment, and what
runs in no process of ours (another machine, a container's daemon), for which such programs are
refused by name.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lora_doctor.dry_run.command import ELSEWHERE, Command
from lora_doctor.dry_run.ending import end_all, remember_root, watched
from lora_doctor.dry_run.prepared_data import cache_of, link_prepared
from lora_doctor.errors import InputError, LimitReached
from lora_doctor.guest.children import deaf_option, is_python
from lora_doctor.guest.session import STOPPED, Session
from lora_doctor.sandbox import memory

#: Seconds between two looks at the processes.
_POLL_SECONDS = 0.02
#: Looks between two of the memory, which costs more.
_MEMORY_EVERY = 10
#: Looks between two words on what is going on, for which files are read.
_TOLD_EVERY = 25
#: Seconds in which a guest has to answer once its process was seen.
_ANSWER_SECONDS = 60.0
_LOG_TAIL = 64 * 1024

#: Services that are told of runs, switched off by their own variables.
_SERVICES = {
    "WANDB_MODE": "disabled",
    "WANDB_SILENT": "true",
    "COMET_MODE": "DISABLED",
    "NEPTUNE_MODE": "debug",
    "SWANLAB_MODE": "disabled",
    "CLEARML_OFFLINE_MODE": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
}
#: DDP then tells parameters by their names.
_DEBUG = {"TORCH_DISTRIBUTED_DEBUG": "INFO"}
#: Matrices of a small model are so small that a second thread only costs.
_THREADS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Ended:
    """How the command ended. ``refused``: why it was stopped for want of a guest. ``limit``: the
    limit that struck. ``output``: the end of what it wrote."""

    code: int
    seconds: float
    output: str
    refused: str = ""
    limit: LimitReached | None = None


def environment_of(session: Session, outer: Mapping[str, str]) -> dict[str, str]:
    """The environment of the command: our guest, folders of the session, no services."""
    found = {**_DEBUG, **_THREADS, **session.environment(outer)}
    found.update(_SERVICES)
    folders = {
        "TMPDIR": "tmp", "TEMP": "tmp", "TMP": "tmp", "WANDB_DIR": "services",
        "TORCHINDUCTOR_CACHE_DIR": "caches", "TRITON_CACHE_DIR": "caches",
        "HF_DATASETS_CACHE": "datasets", "MPLCONFIGDIR": "caches",
    }  # fmt: skip
    for name in set(folders.values()):
        (session.folder / name).mkdir(exist_ok=True)
    found.update({key: str(session.folder / name) for key, name in folders.items()})
    link_prepared(cache_of(outer), session.folder / "datasets")
    found["MLFLOW_TRACKING_URI"] = (session.folder / "services" / "mlruns").as_uri()
    found["PATH"] = os.pathsep.join(filter(None, (str(_refusals(session)), found.get("PATH", ""))))
    return found


def _refusals(session: Session) -> Path:
    """A folder of programs that refuse to start what would have no guest."""
    folder = session.folder / "refused"
    folder.mkdir(exist_ok=True)
    for name in ELSEWHERE:
        path = folder / name
        path.write_text(
            "#!/bin/sh\n"
            f"echo 'lora-doctor: {name} starts programs where no guest is; stopped' >&2\n"
            f"echo '{name}' > '{session.folder / 'elsewhere'}'\n"
            f"exit {STOPPED}\n",
            encoding="utf-8",
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def run(
    command: Command,
    session: Session,
    environment: Mapping[str, str],
    *,
    seconds: float,
    memory_limit: int,
    progress: Callable[[str], None],
) -> Ended:
    """Run the command to its end, or to the first reason to end it.

    Raises:
        InputError: it cannot be started.
    """
    log = session.folder / "output"
    began = time.monotonic()
    with open(log, "wb") as stream, watched(session):
        try:
            process = start(command, environment, stream)
        except OSError as error:
            raise InputError(f"dry-run: {command.words[0]} cannot be started: {error}") from error
        try:
            remember_root(session, process.pid)
            refused, limit = _until_it_ends(
                process, _Watch(session, process.pid), (seconds, memory_limit), progress
            )
        finally:
            end_all(process, session)
    elsewhere = session.folder / "elsewhere"
    if not refused and elsewhere.exists():
        name = elsewhere.read_text(encoding="utf-8").strip()
        refused = f"{name} starts programs where no guest is"
    return Ended(process.returncode, time.monotonic() - began, _tail(log), refused, limit)


def _until_it_ends(
    process: subprocess.Popen[bytes],
    watch: _Watch,
    limits: tuple[float, int],
    progress: Callable[[str], None],
) -> tuple[str, LimitReached | None]:
    """Wait for the end, or for the first reason to end it: want of a guest, or a limit.
    ``limits``: seconds and bytes."""
    began = time.monotonic()
    for count in itertools.count():
        if process.poll() is not None:
            break
        refused = watch.look()
        limit = watch.limit(time.monotonic() - began, *limits)
        if refused or limit:
            return refused, limit
        if count % _TOLD_EVERY == 0:
            progress(watch.stage())
        time.sleep(_POLL_SECONDS)
    return "", None


def start(
    command: Command, environment: Mapping[str, str], stream: IO[bytes]
) -> subprocess.Popen[bytes]:
    """The first process of the command; what it writes goes to ``stream``. Raises OSError."""
    return subprocess.Popen(
        command.words,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
        start_new_session=os.name == "posix",  # Ctrl-C is for us; we end them all
    )


class _Watch:
    """Every process of the command: has its guest answered?"""

    def __init__(self, session: Session, root: int) -> None:
        self._session = session
        self._root = root
        self._since: dict[int, float] = {}
        self._fine: set[int] = set()
        self._looks = 0

    def look(self) -> str:
        """Why the command has to be stopped; empty while all is well."""
        import psutil

        there = memory.process_tree(self._root)
        self._fine &= set(there)  # the number of one that has ended may be another's next
        for number in there:
            if number in self._fine:
                continue
            try:
                reason = self._judge(psutil.Process(number))
            except (psutil.Error, OSError):
                continue  # it has ended meanwhile
            if reason:
                return reason
        return ""

    def _judge(self, process: Any) -> str:
        words = process.cmdline()
        if not words or not is_python(process.exe() or words[0]):
            return ""  # looked at again: it may become a Python yet
        if (self._session.answers / str(process.pid)).exists():
            self._fine.add(process.pid)
            return ""
        line = " ".join(words)[:200]
        option = deaf_option(words[1:])
        if option:
            return f"{line} starts Python with {option}, which lets no guest in"
        if not self._session.reaches(process.environ()):
            return f"{line} was started without the environment of the command"
        since = self._since.setdefault(process.pid, time.monotonic())
        if time.monotonic() - since > _ANSWER_SECONDS:
            return f"{line} runs, and its guest has not answered in {_ANSWER_SECONDS:.0f} s"
        return ""

    def limit(self, elapsed: float, seconds: float, most: int) -> LimitReached | None:
        """The limit that is reached now."""
        if elapsed > seconds:
            return LimitReached(
                "time", seconds, elapsed, "--time-limit", "the default", self.stage()
            )
        self._looks += 1
        if self._looks % _MEMORY_EVERY:
            return None
        held = memory.resident(self._root, most)
        if held > most:
            option = "--memory-limit"
            return LimitReached("memory", most, held, option, "the default", self.stage())
        return None

    def stage(self) -> str:
        """What is going on, in a few words."""
        for kind, words in (("trained", "the script's own saving"), ("train", "training"),
                            ("model", "loading the model")):  # fmt: skip
            if any(f'"kind": "{kind}"' in _text(path) for path in _files(self._session.records)):
                return words
        return "importing"


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _tail(log: Path) -> str:
    with open(log, "rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - _LOG_TAIL))
        return stream.read().decode("utf-8", "replace")
