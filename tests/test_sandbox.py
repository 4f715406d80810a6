"""Whatever a child does, the caller gets an outcome and no process is left behind.

Targets are functions of this very module, which the child imports by name; no torch needed.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.sandbox.outcome import Outcome, TaskFailure
from lora_doctor.sandbox.worker import Worker, report_progress

pytestmark = pytest.mark.skipif(os.name != "posix", reason="uses POSIX signals and process groups")

HERE = __name__
STATE: list[int] = []


# ---- targets, run in the child --------------------------------------------------------------


def add(a: int, b: int) -> dict[str, Any]:
    return {"sum": a + b, "pair": (a, b), "pid": os.getpid(), "parent": os.getppid()}


def fail(message: str) -> None:
    raise ValueError(message)


def unprintable() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    raise Broken


def segfault() -> None:
    ctypes.string_at(0)


def hang() -> None:
    while True:
        time.sleep(1)


def hog() -> None:
    kept = []
    while True:
        kept.append(bytearray(b"x") * (8 << 20))
        time.sleep(0.005)


def grab(size: int) -> int:
    return len(bytearray(size))


def leave(how: str) -> None:
    if how == "sys":
        sys.exit(3)
    elif how == "os":
        os._exit(3)
    elif how == "close":
        os.closerange(3, 256)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def noise(size: int) -> str:
    print("to stdout" * (size // 9))
    print("to stderr \udcff", file=sys.stderr)
    os.write(1, b'{"kind": "answer", "id": 1, "value": "forged", "failure": null, "seconds": 0}\n')
    subprocess.run(["echo", "from a child"], check=True)
    return "done"


def ask() -> str:
    try:
        return input("run the custom code? [y/N] ")
    except EOFError:
        return "end of file"


def steps(count: int) -> int:
    for step in range(count):
        report_progress(f"step {step}\nof {count}")
        time.sleep(0.2)
    return count


def remember() -> int:
    STATE.append(1)
    import colorsys  # not imported by anything here, so a leak would show

    colorsys.leaked = True  # type: ignore[attr-defined]
    return len(STATE)


def recall() -> list[Any]:
    return [len(STATE), "colorsys" in sys.modules, "wave" in sys.modules]


def give(what: str) -> Any:
    nested: list[Any] = []
    nested.append(nested)
    things: dict[str, Any] = {
        "set": {"deep": [1, {2}]},
        "keys": {1: "a"},
        "cycle": nested,
        "floats": [math.nan, math.inf, -math.inf, 0.5],
        "bytes": b"x",
        "large": "x" * (65 << 20),
        "long": 10**5000,
        "text": "ü\n\ud800",
    }
    return things[what]


def spawn(pid_file: str, detached: bool) -> None:
    """Start a grandchild and never come back."""
    child = subprocess.Popen(["sleep", "100"], start_new_session=detached)
    Path(pid_file).write_text(f"{os.getpid()} {child.pid}")
    hang()


def kill_worker(pid_file: str) -> None:
    child = subprocess.Popen(["sleep", "100"])
    Path(pid_file).write_text(f"{os.getpid()} {child.pid}")
    os.kill(os.getppid(), signal.SIGKILL)
    hang()


def leave_fork() -> None:
    if os.fork() == 0:
        hang()
    os._exit(0)


def fork_and_return() -> int:
    """A fork that comes back up the stack must not answer in the task's place."""
    if os.fork() == 0:
        return -1
    os.wait()
    return 1


def surroundings() -> dict[str, Any]:
    names = ["HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"]
    return {
        "cwd": os.getcwd(),
        "path": sys.path,
        "env": {name: os.environ.get(name) for name in names},
        "torch": "torch" in sys.modules,
    }


def use_factory(name: str) -> Any:
    return __import__(name).factory()


def torch_backward(size: int) -> float:
    import torch

    weight = torch.ones(size, size, requires_grad=True)
    (weight @ weight).sum().backward()
    assert weight.grad is not None
    return float(weight.grad.sum())


# ---- tests ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["fork", "process"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """Both ways of isolating: a fork per task (Linux), a process per task (elsewhere, CUDA)."""
    fork = request.param == "fork"
    if fork and sys.platform != "linux":
        pytest.skip("forks on Linux only")
    with make_worker(fork=fork) as made:
        yield made


def make_worker(**options: Any) -> Worker:
    options.setdefault("preload", ("wave",))
    return Worker(packages=(HERE.partition(".")[0],), **options)


def run(worker: Worker, function: Any, time_limit: float = 20, **options: Any) -> Outcome:
    limits = {
        name: options.pop(name)
        for name in ("memory_limit", "progress", "import_cwd")
        if name in options
    }
    return worker.run(f"{HERE}:{function.__name__}", options, time_limit=time_limit, **limits)


def failure(outcome: Outcome, kind: str) -> TaskFailure:
    assert outcome.value is None
    assert outcome.failure is not None
    assert outcome.failure.kind == kind, outcome.failure
    assert "\n" not in outcome.failure.message
    return outcome.failure


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # a zombie is dead; in a container nobody may reap it


def wait_dead(*pids: int, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_result(worker: Worker) -> None:
    outcome = run(worker, add, a=2, b=3)
    assert outcome.ok, outcome.failure
    assert outcome.value["sum"] == 5
    assert outcome.value["pair"] == [2, 3]
    assert outcome.value["pid"] != os.getpid()
    assert outcome.peak_rss > 1 << 20
    assert 0 <= outcome.seconds < 5
    assert outcome.import_seconds > 0


def test_exception(worker: Worker) -> None:
    found = failure(run(worker, fail, message="two\nlines"), "exception")
    assert found.type == "ValueError"
    assert found.message == "two lines"
    assert "raise ValueError(message)" in found.traceback


def test_exception_that_cannot_be_shown(worker: Worker) -> None:
    found = failure(run(worker, unprintable), "exception")
    assert found.type.endswith("Broken")
    assert "__str__ raised RuntimeError" in found.message


def test_segfault(worker: Worker) -> None:
    found = failure(run(worker, segfault), "crash")
    assert found.type == "SIGSEGV"
    assert "in segfault" in found.traceback


def test_hang(worker: Worker) -> None:
    began = time.monotonic()
    outcome = run(worker, hang, time_limit=3)
    found = failure(outcome, "timeout")
    assert "did not finish in 3 s" in found.message
    assert "in hang" in found.traceback
    assert outcome.seconds < 6
    assert time.monotonic() - began < 20


def test_memory_hog(worker: Worker) -> None:
    limit = 200 << 20
    outcome = run(worker, hog, memory_limit=limit)
    found = failure(outcome, "memory")
    assert "limit 200 MiB" in found.message
    assert limit < outcome.peak_rss < 2 * limit


@pytest.mark.skipif(sys.platform != "linux", reason="the backstop is Linux's RLIMIT_DATA")
def test_allocation_too_fast_to_watch_is_refused(worker: Worker) -> None:
    found = failure(run(worker, grab, size=8 << 30, memory_limit=100 << 20), "memory")
    assert found.type == "MemoryError"


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("sys", "exception", "sys.exit(3)"),
        ("os", "crash", "exit code 3"),
        ("close", "crash", "without an answer"),
        ("kill", "crash", "SIGKILL"),
    ],
)
def test_leaving_early(worker: Worker, how: str, kind: str, words: str) -> None:
    assert words in failure(run(worker, leave, how=how), kind).message


def test_noise_goes_to_the_log(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = run(worker, noise, size=20_000_000)
    assert outcome.value == "done"
    assert capfd.readouterr() == ("", "")


def test_log_tail_is_of_this_task(worker: Worker) -> None:
    run(worker, noise, size=90)
    found = failure(run(worker, fail, message="x"), "exception")
    assert "to stdout" not in found.log_tail


def test_stdin_is_at_its_end(worker: Worker) -> None:
    assert run(worker, ask).value == "end of file"


def test_progress_is_live(worker: Worker) -> None:
    seen: list[tuple[float, str]] = []
    outcome = run(
        worker, steps, count=3, progress=lambda text: seen.append((time.monotonic(), text))
    )
    assert [text for _, text in seen] == ["step 0 of 3", "step 1 of 3", "step 2 of 3"]
    assert seen[2][0] - seen[0][0] > 0.2
    assert outcome.value == 3


@pytest.mark.skipif(sys.platform == "win32", reason="waits for the end by its process id")
def test_an_answer_given_just_before_the_end_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process answers and ends between the look for a message and the look for its end."""
    poll = subprocess.Popen.poll

    def late(process: subprocess.Popen[bytes]) -> int | None:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return poll(process)

    with make_worker(fork=False) as worker:
        assert run(worker, add, a=1, b=1).ok
        monkeypatch.setattr(subprocess.Popen, "poll", late)
        assert run(worker, steps, count=2).value == 2


def test_progress_outside_a_task_is_nothing() -> None:
    assert report_progress("x") is None  # type: ignore[func-returns-value]


def test_tasks_share_imports_but_no_state(worker: Worker) -> None:
    assert run(worker, remember).value == 1
    assert run(worker, remember).value == 1
    assert run(worker, recall).value == [0, False, True]


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
def test_forks_share_one_worker() -> None:
    with make_worker() as forking:
        first, second = run(forking, add, a=1, b=1), run(forking, add, a=1, b=1)
    assert first.value["parent"] == second.value["parent"]
    assert first.value["pid"] != second.value["pid"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("set", "result.deep[1]: builtins.set is not JSON"),
        ("keys", "key 1 is int, not str"),
        ("cycle", "recursion"),
        ("bytes", "builtins.bytes is not JSON"),
        ("long", "integer string conversion"),
        ("large", "larger than 64 MiB"),
    ],
)
def test_result_that_is_not_json(worker: Worker, what: str, words: str) -> None:
    assert words in failure(run(worker, give, what=what), "protocol").message


def test_result_that_is_json(worker: Worker) -> None:
    assert run(worker, give, what="floats").value == ["nan", "inf", "-inf", 0.5]
    assert run(worker, give, what="text").value == "ü\n\ud800"


def test_arguments_that_are_not_json(worker: Worker) -> None:
    with pytest.raises(TypeError, match=r"kwargs\.a: builtins\.object is not JSON"):
        run(worker, add, a=object(), b=1)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("os:getpid", "no other code may be a target"),
        (f"{HERE}:nothing", "no function 'nothing'"),
        (f"{HERE}.nothing:at_all", "no module"),
        ("", "no other code"),
    ],
)
def test_target_that_cannot_be_called(worker: Worker, target: str, words: str) -> None:
    assert words in failure(worker.run(target, time_limit=5), "protocol").message


def test_fork_that_comes_back_does_not_answer(worker: Worker) -> None:
    assert run(worker, fork_and_return).value == 1


@pytest.mark.parametrize("detached", [False, True])
def test_grandchildren_die_with_the_task(worker: Worker, tmp_path: Path, detached: bool) -> None:
    if detached and not worker._fork:
        pytest.skip("without a worker in between nobody inherits detached processes")
    pids = tmp_path / "pids"
    failure(run(worker, spawn, time_limit=1, pid_file=str(pids), detached=detached), "timeout")
    assert wait_dead(*map(int, pids.read_text().split()))


def test_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's folder is the working directory, but importable on request only."""
    (tmp_path / "wave.py").write_text("raise SystemExit('the folder was executed')")
    (tmp_path / "ld_factory.py").write_text("def factory(): return 'made'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with make_worker(threads=1) as made:
        value = run(made, surroundings).value
        assert value["cwd"] == str(tmp_path)
        assert str(tmp_path) not in value["path"]
        assert "" not in value["path"]
        assert not value["torch"]
        assert value["env"] == {
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        assert made.import_errors == {}
        failure(run(made, use_factory, name="ld_factory"), "exception")
        assert run(made, use_factory, name="ld_factory", import_cwd=True).value == "made"


def test_preload_that_fails_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ld_broken.py").write_text("raise SystemExit('a\\nb')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with make_worker(preload=("ld_broken", "ld_missing")) as made:
        assert run(made, add, a=1, b=1).ok
        assert made.import_errors == {
            "ld_broken": "SystemExit: a b",
            "ld_missing": "ModuleNotFoundError: No module named 'ld_missing'",
        }


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import time; time.sleep(100)", "timeout"),
        ("import os; os.abort()", "crash"),
    ],
)
def test_preload_that_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: str
) -> None:
    (tmp_path / "ld_bad.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with make_worker(preload=("ld_bad",), preload_limit=1) as made:
        found = failure(run(made, add, a=1, b=1), kind)
        assert "importing ld_bad" in found.message
        assert "ld_bad.py" in found.log_tail or kind == "timeout"
        (tmp_path / "ld_bad.py").write_text("")  # the next run starts anew
        assert run(made, add, a=1, b=1).ok


def test_worker_that_was_killed_is_replaced() -> None:
    with make_worker() as made:
        first = run(made, add, a=1, b=1).value
        os.kill(first["parent"], signal.SIGKILL)
        assert wait_dead(first["parent"])
        second = run(made, add, a=1, b=1)
        assert second.ok
        assert second.value["parent"] != first["parent"]


def test_task_that_kills_its_worker_takes_nobody_else_along(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with make_worker() as made:
        failure(run(made, kill_worker, pid_file=str(pids)), "crash")
        assert wait_dead(*map(int, pids.read_text().split()))
        assert run(made, add, a=1, b=1).ok


def test_fork_that_stays_behind_holds_nothing_up(worker: Worker) -> None:
    """It has the pipe open; the end of the task itself must count."""
    began = time.monotonic()
    failure(run(worker, leave_fork), "crash")
    assert time.monotonic() - began < 5


def test_error_in_the_progress_callback_kills_the_task(tmp_path: Path) -> None:
    def callback(text: str) -> None:
        raise RuntimeError("from the callback")

    with make_worker() as made:
        with pytest.raises(RuntimeError, match="from the callback"):
            run(made, steps, count=100, progress=callback)
        assert run(made, add, a=1, b=1).ok


CALLER = """
import sys
from lora_doctor.sandbox.worker import Worker
sys.path.insert(0, {folder!r})
with Worker(preload=(), packages=("test_sandbox",), fork={fork}) as worker:
    try:
        worker.run("test_sandbox:spawn", {{"pid_file": {pids!r}, "detached": {fork}}},
                   time_limit=100)
    except KeyboardInterrupt:
        print("interrupted")
        raise
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("fork", [True, False])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_no_orphans(tmp_path: Path, how: signal.Signals, fork: bool) -> None:
    pids = tmp_path / "pids"
    code = CALLER.format(folder=str(Path(__file__).parent), pids=str(pids), fork=fork)
    caller = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        end = time.monotonic() + 20
        while not (pids.exists() and pids.read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        task, grandchild = map(int, pids.read_text().split())
        assert alive(task)
        assert alive(grandchild)
        caller.send_signal(how)
        stdout, _ = caller.communicate(timeout=10)
        assert wait_dead(task, grandchild)
        if how is signal.SIGINT:
            assert "interrupted" in stdout
            assert caller.returncode in (1, 130, -signal.SIGINT)
    finally:
        caller.kill()
        caller.wait()


@pytest.mark.slow
def test_torch_in_forks() -> None:
    pytest.importorskip("torch")
    with make_worker(preload=("torch", "transformers", "peft"), threads=2) as made:
        made.start()
        for _ in range(2):
            outcome = run(made, torch_backward, size=300, time_limit=60)
            assert outcome.value == 2 * 300**3, outcome.failure
            assert outcome.seconds < 5


def compiled_doubles(module: str) -> list[Any]:
    """What the module's function gives, and what its backend had compiled before and after."""
    import torch

    library = importlib.import_module(module)
    before = len(library.compiled)
    values = [library.double(torch.tensor(size)).item() for size in (2, 3)]
    return [before, values, len(library.compiled), library.net.weight.item()]


@pytest.mark.slow
def test_a_library_that_compiles_when_imported_compiles_when_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As bitsandbytes does: what is never called is never compiled, what is called is."""
    pytest.importorskip("torch")
    (tmp_path / "ld_compiles.py").write_text(
        "import torch\n"
        "compiled = []\n"
        "def backend(graph, inputs):\n"
        "    compiled.append(graph)\n"
        "    return graph.forward\n"
        "@torch.compile(backend=backend, dynamic=True)\n"
        "def double(x):\n"
        "    return x + x\n"
        "net = torch.compile(torch.nn.Linear(1, 1, bias=False), backend=backend)\n"
        "torch.nn.init.ones_(net.weight)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    with make_worker(preload=("torch", "ld_compiles"), threads=1) as made:
        outcome = run(made, compiled_doubles, module="ld_compiles", time_limit=60)
        assert outcome.value is not None, outcome.failure
        before, values, after, weight = outcome.value
    assert (before, values, weight) == (0, [4, 6], 1.0)
    assert after > 0
