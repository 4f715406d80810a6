"""However a run is ended, nothing of it stays: no process, no temporary folder."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_doctor.cli.signals import EndedBySignal, end_like_interrupt
from lora_doctor.errors import InputError
from lora_doctor.sandbox.temporary import PREFIX, TemporaryFolder, temporary_folder
from lora_doctor.sandbox.worker import Worker
from tests.cli import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

#: In the place of torch: what the child imports first, and would be at for long.
HANGS = """
import os, pathlib, subprocess, tempfile, time
folder = tempfile.mkdtemp()
pathlib.Path(folder, "weights").write_text("x")
grandchild = subprocess.Popen(["sleep", "600"])
pathlib.Path(os.environ["MARK"]).write_text(f"{os.getpid()} {grandchild.pid}")
time.sleep(600)
"""


@contextmanager
def running(tmp_path: Path, **options: object) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A run whose child hangs with a temporary folder of its own, and the child's processes."""
    (tmp_path / "stubs").mkdir(exist_ok=True)
    (tmp_path / "stubs" / "torch.py").write_text(HANGS)
    (tmp_path / "tmp").mkdir(exist_ok=True)
    mark = tmp_path / "mark"
    mark.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_doctor", "check", "arch:llama", "--depth", "meta"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "MARK": str(mark), "NO_COLOR": "1",
             "PYTHONPATH": os.pathsep.join([str(tmp_path / "stubs"), str(ROOT)])},
        **options,  # type: ignore[call-overload]
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not (mark.exists() and mark.read_text()):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.05)
        # Not in the middle of an import, where Python loses an exception now and then
        # (callbacks of weak references: "Exception ignored in").
        before = None
        while before != (before := processor_time(process.pid)):
            assert time.monotonic() < end
            time.sleep(0.3)
        yield process, [int(word) for word in mark.read_text().split()]
    finally:
        process.kill()
        process.communicate()


def processor_time(pid: int) -> list[str]:
    """What the kernel has counted for the process, in clock ticks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def all_dead(pids: list[int], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGTERM, -signal.SIGTERM, "ended by SIGTERM"),
        (signal.SIGHUP, -signal.SIGHUP, "ended by SIGHUP"),
        (signal.SIGINT, -signal.SIGINT, "interrupted"),
    ],
)
def test_a_signal_ends_everything(
    tmp_path: Path, number: signal.Signals, code: int, says: str
) -> None:
    """The parent sees the signal that ended it (a shell: 128 + n)."""
    with running(tmp_path) as (process, pids):
        assert os.listdir(tmp_path / "tmp"), "there is something to remove"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (code, "", f"lora-doctor: {says}\n")
        assert all_dead(pids)
    assert os.listdir(tmp_path / "tmp") == []


def test_under_nohup_a_hang_up_ends_nothing(tmp_path: Path) -> None:
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with running(tmp_path, preexec_fn=ignore) as (process, pids):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None and alive(pids[0])
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM
    assert os.listdir(tmp_path / "tmp") == []


def test_after_a_kill_the_next_run_removes_what_was_left(tmp_path: Path) -> None:
    place = tmp_path / "tmp"
    with running(tmp_path) as (process, pids):
        process.kill()
        process.communicate()
        assert all_dead(pids[:1])
        left = os.listdir(place)
    assert left and all(name.startswith(PREFIX) for name in left)
    with running(tmp_path) as (process, _):
        assert not set(left) & set(os.listdir(place)), "removed by the next"
        process.terminate()
        process.wait(20)
    assert os.listdir(place) == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for temporary files of this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_nothing_but_our_own_is_removed(place: Path) -> None:
    """Folders that somebody holds, or that only look like ours."""
    home = place / "home"
    home.mkdir()
    (home / ".lora-doctor-lock").touch()
    home.chmod(0o700)
    (place / f"{PREFIX}link").symlink_to(home)
    without = place / f"{PREFIX}without-lock"
    without.mkdir(mode=0o700)
    open_to_all = place / f"{PREFIX}open"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    (open_to_all / ".lora-doctor-lock").touch()
    linked = place / f"{PREFIX}linked-lock"
    linked.mkdir(mode=0o700)
    (linked / ".lora-doctor-lock").symlink_to(home / ".lora-doctor-lock")
    file = place / f"{PREFIX}file"
    file.touch()
    held = TemporaryFolder()
    foreign = place / f"{PREFIX}foreign"
    foreign.mkdir(mode=0o700)
    (foreign / ".lora-doctor-lock").touch()
    if os.geteuid() == 0:
        os.chown(foreign, 12345, 12345)
    left = place / f"{PREFIX}left"
    left.mkdir(mode=0o700)
    (left / ".lora-doctor-lock").touch()
    (left / "sub").mkdir()
    (left / "sub" / "link").symlink_to(home)
    before = set(os.listdir(place))
    with temporary_folder() as folder:
        gone = before - set(os.listdir(place))
        assert gone == {left.name} | ({foreign.name} if os.geteuid() != 0 else set())
        assert held.path.exists() and Path(folder).parent == place
    assert (home / ".lora-doctor-lock").exists()
    held.remove()
    assert not held.path.exists() and not Path(folder).exists()


def test_a_folder_is_locked_before_it_can_be_told(place: Path) -> None:
    folder = TemporaryFolder()
    with (folder.path / ".lora-doctor-lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    pid = os.fork()
    if pid == 0:
        folder.remove()  # a fork that ends
        os._exit(0)
    os.waitpid(pid, 0)
    assert folder.path.exists()
    folder.remove()


def test_without_a_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(InputError, match=r"No usable temporary directory.*set TMPDIR"):
        Worker(preload=()).start()


def test_a_place_that_is_full(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(InputError, match=r"No space left.*set TMPDIR"):
        TemporaryFolder()


def test_where_no_process_can_be_started(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(InputError, match=r"cannot be started: Resource.*--depth static"):
        Worker(preload=()).start()
    assert os.listdir(place) == []


def test_a_worker_is_stopped_from_another_thread(place: Path) -> None:
    """How a census is broken off: the row that is being made fails, and no other begins."""
    import threading

    with Worker(preload=(), packages=("subprocess",)) as worker:
        stopping = threading.Timer(1.0, worker.stop)
        stopping.start()
        began = time.monotonic()
        for _ in range(2):
            outcome = worker.run("subprocess:call", {"args": ["sleep", "60"]}, time_limit=60)
            assert outcome.failure is not None and outcome.failure.kind == "crash"
        assert time.monotonic() - began < 20
    stopping.join(20)
    assert os.listdir(place) == []


def test_a_handler_of_somebody_else_stays_his() -> None:
    """SIGTERM is ours and ends the run; the SIGHUP of the program around it is never touched."""

    def own(number: int, frame: object) -> None:
        raise AssertionError("not sent")

    before = signal.signal(signal.SIGHUP, own)
    try:
        with pytest.raises(EndedBySignal), end_like_interrupt():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                assert signal.getsignal(signal.SIGHUP) is own
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is own
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
