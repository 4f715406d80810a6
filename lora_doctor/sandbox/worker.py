"""Run functions that execute model code in a child process, under a time and a memory limit.

    with Worker() as worker:
        outcome = worker.run("lora_doctor.evidence.tiny:gather", {...}, time_limit=60)
        if outcome.failure: ...

A crash, a hang or an out-of-memory of the child is an `Outcome` with a `TaskFailure`, never the end
of the tool. The child pays the heavy imports once and *forks* for each task, so every task starts
from the same clean state: patches and remote code of one task never reach the next.

Wire: the child's stdin carries requests and its stdout answers, one JSON object a line. Before any
library is imported, `child.py` moves both to private descriptors, points stdin at the null device
and stdout at the log; what a library prints ends in the log, and a library that asks a question
gets end-of-file.

Answers are strict JSON: a float that is not finite arrives as the string "nan", "inf" or "-inf".
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lora_doctor.errors import LimitReached
from lora_doctor.sandbox.outcome import TIME_OPTION, Outcome, TaskFailure, end_of
from lora_doctor.sandbox.process import GRACE_SECONDS, ChildProcess
from lora_doctor.sandbox.task import Task

# What every task would import anyway. bitsandbytes, where installed, because PEFT imports it when
# it injects an adapter: with peft 0.7 to 0.18 that costs each task 0.7 to 1.8 s, after this preload
# 0.05 s (see `deferred` for what of it is put off). Nothing else that a first forward, backward and
# optimizer step imports costs more than 0.1 s, but our own modules and a table of transformers'.
# No task runs in this process, so no operator of torch has been called and no thread started when
# it forks (counted: one thread on each stack).
PRELOAD = ("torch", "transformers", "peft", "bitsandbytes", "lora_doctor.sandbox.preload")

PRELOAD_SECONDS = 300.0


# Set by child.py inside a task's process; elsewhere there is nobody to tell.
_progress_sink: Callable[[str, Mapping[str, str]], None] | None = None


def report_progress(text: str, **facts: str) -> None:
    """Tell the `progress` callback of `Worker.run` what is going on; does nothing outside a task,
    so that the same function can also be called directly.

    facts: what is known of the run by now (``device="cuda"``), for `Outcome.facts`: it outlives a
        task that gives no value.
    """
    if _progress_sink is not None:
        _progress_sink(text, facts)


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
        preload_limit: float = PRELOAD_SECONDS,
        fork: bool | None = None,
    ) -> None:
        self._setup = {"preload": preload, "packages": packages, "cuda": cuda}
        self._env = _environment(offline=offline, cuda=cuda, threads=threads)
        self._preload_limit = preload_limit
        self._fork = (sys.platform == "linux" and not cuda) if fork is None else fork
        self._child: ChildProcess | None = None
        self._task: Task | None = None  # the one that runs
        self._count = 0
        self._lock = threading.Lock()
        self._stopped = False
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
        if self._child is None and not self._stopped:
            self._child = ChildProcess(self._setup, self._env, fork=self._fork)

    def stop(self) -> None:
        """Close it for good, from any thread: the task that is running fails, and every other."""
        self._stopped = True
        self.close()

    def close(self) -> None:
        """Kill the child and all that it started. The worker can be started again."""
        child, task = self._child, self._task
        self._child = self._task = None
        if child is not None:
            child.kill(task.pid if task is not None else None)

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
        memory_limit: bytes of resident memory of the task's process and all that it started,
            looked at every 50 ms; what the imports occupy counts (about 0.5 GiB).
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
                if child is None:
                    return _stopped(target)
                outcome = self._await_imports(child) or self._run(child, request, progress)
                if not (self._fork and child.ready and child.running()):
                    self.close()
                self._task = None
            except BaseException as error:
                self.close()
                if self._stopped and isinstance(error, (OSError, ValueError)):
                    return _stopped(target)  # its log was closed while it was being read
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
                failure = end_of(doing, child.wait(GRACE_SECONDS), child.log_tail())
            elif not message:
                text = f"{doing} did not finish in {self._preload_limit:g} s"
                limit = LimitReached(
                    "time", self._preload_limit, time.monotonic() - began, TIME_OPTION, "", doing
                )
                failure = TaskFailure("timeout", "", text, log_tail=child.log_tail(), limit=limit)
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
        progress: Callable[[str], None] | None,
    ) -> Outcome:
        self._count += 1
        self._task = task = Task(child, {**request, "id": self._count}, progress)
        outcome = task.follow()
        self.processor_seconds += task.processor_seconds
        if task.unresponsive:
            self.close()
        return outcome


def _stopped(target: str) -> Outcome:
    return Outcome(failure=TaskFailure("crash", "", f"{target}: the run was stopped"))


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
