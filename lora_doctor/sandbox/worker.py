"""Run functions that execute model code in a child process, under a time and a memory limit.

    with Worker() as worker:
        outcome = worker.run("lora_doctor.evidence.tiny:train", {"steps": 3}, time_limit=60)
        if outcome.failure: ...

A crash, a hang or an out-of-memory of the child is an `Outcome` with a `Failure`, never the end of
the tool. The child pays the heavy imports once and *forks* for each task, so every task starts from
the same clean state: patches and remote code of one task never reach the next.

Wire: the child's stdin carries requests and its stdout answers, one JSON object a line. Before any
library is imported, `worker.py` moves both to private descriptors, points stdin at the null device
and stdout at the log; what a library prints ends in the log, and a library that asks a question
gets end-of-file.

Answers are strict JSON: a float that is not finite arrives as the string "nan", "inf" or "-inf".
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lora_doctor.errors import Cause
from lora_doctor.sandbox.process import GRACE_SECONDS, STACK_MARK, ChildProcess, resident

FailureKind = Literal["exception", "crash", "timeout", "memory", "protocol"]

POLL_SECONDS = 0.05  # how often resident memory and the clock are looked at
# What every task would import anyway. bitsandbytes, where installed, because PEFT imports it when
# it injects an adapter: with peft 0.7 to 0.18 that costs each task 0.7 to 1.8 s (it pulls in
# torch._inductor), after this preload 0.05 s. Nothing else that a first forward, backward and
# optimizer step imports costs more than 0.1 s, but our own modules and a table of transformers'.
# No task runs in this process, so no operator of torch has been called and no thread started when
# it forks (counted: one thread on each stack).
PRELOAD = ("torch", "transformers", "peft", "bitsandbytes", "lora_doctor.sandbox.preload")
CRASH_MARK = "Fatal Python error:"  # faulthandler's first line


@dataclass(frozen=True)
class Failure:
    """Why a task gave no value. `message` is one line; `traceback` and `log_tail` may be empty.

    kind: "exception" raised by the function (`SystemExit` too); "crash": the process ended by a
    signal or without an answer; "timeout"; "memory": over the limit, or an allocation refused;
    "protocol": the function or its result does not fit (no such target, result is not JSON).
    type: the exception's qualified name, the signal's name, or "" where there is none.
    cause: what the exception was raised from, as EvidenceErrors are from what the model raised.
    """

    kind: FailureKind
    type: str
    message: str
    traceback: str = ""
    log_tail: str = ""
    cause: Cause | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    value: the JSON result (None when `failure` is set). seconds: of the task alone.
    peak_rss: bytes, the highest resident memory of the task's process; pages of the imported
    libraries, shared with the forking parent, count. import_seconds: of the imports made before
    the task (paid once per worker process).
    """

    value: Any = None
    failure: Failure | None = None
    seconds: float = 0.0
    peak_rss: int = 0
    import_seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.failure is None


# Set by worker.py inside a task's process; elsewhere there is nobody to tell.
_progress_sink: Callable[[str], None] | None = None


def report_progress(text: str) -> None:
    """Tell the `progress` callback of `Worker.run` what is going on; does nothing outside a task,
    so that the same function can also be called directly."""
    if _progress_sink is not None:
        _progress_sink(text)


def to_json(value: Any, where: str = "result") -> Any:
    """`value` as strict JSON data: tuples become lists, floats that are not finite strings.

    Raises TypeError, with the place, for anything that JSON has no word for; keys that are not
    strings included, because JSON would silently turn 1 into "1".
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r:.80} is {type(key).__name__}, not str")
        return {str(key): to_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where}: {type(value).__module__}.{type(value).__qualname__} is not JSON")


def one_line(text: str, limit: int = 2000) -> str:
    """`text` without line breaks, at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


class Worker:
    """A child process that runs tasks one after the other, each isolated from the others.

    preload: modules imported once, before the first task; one that cannot be imported is noted in
        `import_errors` and is no failure of its own.
    packages: top-level packages whose functions may be named as a target.
    offline: model code cannot reach the hub (HF_HUB_OFFLINE).
    cuda: without it the child sees no GPU. With it each task has a process of its own, because
        CUDA cannot be used in a fork of a process that has looked at it, and some libraries look
        when imported.
    threads: of OpenMP and the BLAS libraries in the child; None leaves the environment as it is.
        Tiny models want 1: a training step took 0.01 s with one thread and 0.8 s with two on a
        busy machine of two cores, where threads wait for each other actively.
    preload_limit: seconds for the imports, apart from the time limit of a task.
    fork: None decides by platform. Only Linux forks: macOS frameworks do not survive it.

    `processor_seconds` is what all its tasks together have used so far, where it forks; else 0.
    """

    def __init__(
        self,
        preload: tuple[str, ...] = PRELOAD,
        *,
        packages: tuple[str, ...] = ("lora_doctor",),
        offline: bool = True,
        cuda: bool = False,
        threads: int | None = None,
        preload_limit: float = 300.0,
        fork: bool | None = None,
    ) -> None:
        self._setup = {"preload": preload, "packages": packages, "cuda": cuda}
        self._env = _environment(offline=offline, cuda=cuda, threads=threads)
        self._preload_limit = preload_limit
        self._fork = (sys.platform == "linux" and not cuda) if fork is None else fork
        self._child: ChildProcess | None = None
        self._task: int | None = None  # process id of the running task
        self._count = 0
        self._lock = threading.Lock()
        self.import_errors: dict[str, str] = {}
        self.processor_seconds = 0.0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin the imports in the background, so that the caller can do other work meanwhile."""
        if self._child is not None and self._child.ready and not self._child.running():
            self.close()  # killed from outside between two tasks
        if self._child is None:
            self._child = ChildProcess(self._setup, self._env, fork=self._fork)

    def close(self) -> None:
        """Kill the child and all that it started. The worker can be started again."""
        child, task = self._child, self._task
        self._child = self._task = None
        if child is not None:
            child.kill(task)

    def run(
        self,
        target: str,
        kwargs: Mapping[str, Any] | None = None,
        *,
        time_limit: float,
        memory_limit: int | None = None,
        progress: Callable[[str], None] | None = None,
        import_cwd: bool = False,
    ) -> Outcome:
        """Call `module:function(**kwargs)` in the child and wait for its JSON result.

        time_limit: seconds, counted from the end of the imports.
        memory_limit: bytes of resident memory of the task's process (children of the task are not
            counted), looked at every 50 ms; what the imports occupy counts (about 0.5 GiB).
        progress: called with each line that the task gives to `report_progress`.
        import_cwd: the working directory is importable, ahead of everything else, as it is for
            `python script.py` there; for a model source `module:factory`, and only then: any other
            working directory may be a model repository, of which nothing may be executed.

        Raises TypeError when `kwargs` are not JSON. Everything else is in the outcome; an exception
        raised here meanwhile (KeyboardInterrupt, one of `progress`) kills the child first.
        """
        request = {
            "target": target,
            "kwargs": to_json(dict(kwargs or {}), "kwargs"),
            "time_limit": time_limit,
            "memory_limit": memory_limit,
            "import_cwd": import_cwd,
        }
        with self._lock:
            try:
                self.start()
                child = self._child
                assert child is not None
                outcome = self._await_imports(child) or self._run(
                    child, request, time_limit, memory_limit, progress
                )
                if not (self._fork and child.ready and child.running()):
                    self.close()
                self._task = None
            except BaseException:
                self.close()
                raise
            return outcome

    def _await_imports(self, child: ChildProcess) -> Outcome | None:
        """None when the child is ready, else why it never will be."""
        began = time.monotonic()
        while not child.ready:
            message = child.receive(began + self._preload_limit - time.monotonic())
            doing = f"importing {child.importing}" if child.importing else "starting Python"
            failure = None
            if message is None:
                failure = _end_of(doing, child.wait(GRACE_SECONDS), child.log_tail())
            elif not message:
                text = f"{doing} did not finish in {self._preload_limit:g} s"
                failure = Failure("timeout", "", text, log_tail=child.log_tail())
            elif message.get("kind") == "importing":
                child.importing = message["name"]
            elif message.get("kind") == "ready":
                child.ready = True
                child.import_seconds = message["seconds"]
                self.import_errors = message["errors"]
            if failure is not None:
                return Outcome(failure=failure, import_seconds=time.monotonic() - began)
        return None

    def _run(
        self,
        child: ChildProcess,
        request: dict[str, Any],
        time_limit: float,
        memory_limit: int | None,
        progress: Callable[[str], None] | None,
    ) -> Outcome:
        self._count += 1
        child.send({**request, "id": self._count})  # a closed pipe shows as the end of messages
        target = request["target"]
        log_start, oom_kills = child.log_size(), _oom_kills()
        began = time.monotonic()
        peak = 0
        answer: dict[str, Any] | None = None
        stopped: Failure | None = None  # we ended it, and why
        over: float | None = None  # when it answered or was stopped: then it must end soon
        code: int | None = None
        while True:
            message = child.receive(POLL_SECONDS)
            now = time.monotonic()
            if message is None:  # the end of the process: of the task's own, or of the worker's
                code = child.wait(GRACE_SECONDS)
                break
            kind = message.get("kind") if message.get("id") == self._count else None
            if kind == "started":
                self._task, began = message["pid"], now
            elif kind == "progress" and progress is not None:
                progress(message["text"])
            elif kind == "answer" and stopped is None:
                answer, over, peak = message, now, max(peak, message["peak"])
            elif kind == "exited":
                code, peak = message["code"], max(peak, message["peak"])
                self.processor_seconds += message["processor"]
                break
            child.trim_log()
            rss = resident(self._task) if self._task is not None else 0
            peak = max(peak, rss)
            if over is None:
                if memory_limit is not None and rss > memory_limit:
                    text = f"{target} used {_size(rss)} of memory, limit {_size(memory_limit)}"
                    stopped = Failure("memory", "", text)
                elif now - began > time_limit:
                    text = f"{target} did not finish in {time_limit:g} s"
                    stopped = Failure("timeout", "", text)
                if stopped is not None:
                    over = now
                    child.stop(self._count, stack=stopped.kind == "timeout")
            elif now - over > 2 * GRACE_SECONDS:  # not even the worker reacts
                self.close()
                break
            elif now - over > GRACE_SECONDS:
                child.stop(self._count, stack=False)
        seconds = time.monotonic() - began
        log = child.log_tail(log_start) if not child.log.closed else ""
        failure = stopped
        if failure is None and answer is None:
            failure = _end_of(target, code, log, out_of_memory=_oom_kills() > oom_kills)
        elif failure is None and answer is not None and answer["failure"] is not None:
            failure = _told(answer["failure"])
        if failure is not None:
            failure = replace(failure, log_tail=log, traceback=failure.traceback or _stack(log))
        return Outcome(
            value=answer["value"] if answer is not None and failure is None else None,
            failure=failure,
            seconds=answer["seconds"] if answer is not None else seconds,
            peak_rss=peak,
            import_seconds=child.import_seconds,
        )


def _told(answer: Mapping[str, Any]) -> Failure:
    """The failure that the child has described."""
    cause = answer.get("cause")
    return Failure(**{**answer, "cause": Cause(**cause) if cause else None})


def _end_of(what: str, code: int | None, log: str, *, out_of_memory: bool = False) -> Failure:
    """The failure of a process that ended without an answer. code: as of subprocess."""
    if code is None or code >= 0:
        text = f"{what}: the process ended with exit code {code} and without an answer"
        return Failure("crash", "", text, _stack(log), log)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if out_of_memory and name == "SIGKILL":
        text = f"{what}: the kernel killed the process because memory ran out"
        return Failure("memory", name, text, _stack(log), log)
    text = f"{what}: the process was ended by {name}"
    if name == "SIGKILL":  # nobody here sent it
        text += ", most likely by the system because memory ran out"
    return Failure("crash", name, text, _stack(log), log)


def _stack(log: str) -> str:
    """Python's stack as faulthandler wrote it into the log at a crash or when told to stop."""
    start = max(log.rfind(STACK_MARK), log.rfind(CRASH_MARK))
    if start < 0:
        return ""
    lines = log[start:].splitlines()
    return "\n".join(line for line in lines if not line.startswith("Extension modules:"))


def _oom_kills() -> int:
    """How many processes the Linux kernel has killed for memory so far; 0 where it does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def _environment(*, offline: bool, cuda: bool, threads: int | None) -> dict[str, str]:
    """The child's environment: the user's, and what keeps model code quiet and at home."""
    env = dict(os.environ)
    env["TOKENIZERS_PARALLELISM"] = "false"  # tokenizers warns about forks otherwise
    env["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # What libraries say of sets is then said in the same order in every run.
    env.setdefault("PYTHONHASHSEED", "0")
    if offline:
        env["HF_HUB_OFFLINE"] = "1"
        env["TRANSFORMERS_OFFLINE"] = "1"
    if not cuda:
        env["CUDA_VISIBLE_DEVICES"] = ""
    if threads is not None:
        for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
            env[f"{name}_NUM_THREADS"] = str(threads)
        env["VECLIB_MAXIMUM_THREADS"] = str(threads)
    return env
