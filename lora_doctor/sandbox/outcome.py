"""What became of a task: its value, or why there is none."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from lora_doctor.errors import Cause, LimitReached, Remedy
from lora_doctor.sandbox.messages import FailureKind
from lora_doctor.sandbox.process import STACK_MARK

#: Options of the command line that raise the limits of a task.
TIME_OPTION, MEMORY_OPTION = "--time-limit", "--memory-limit"
CRASH_MARK = "Fatal Python error:"  # faulthandler's first line


@dataclass(frozen=True)
class TaskFailure:
    """Why a task gave no value. `message` is one line; `traceback` and `log_tail` may be empty.

    kind: "exception" raised by the function (`SystemExit` too); "crash": the process ended by a
    signal or without an answer; "timeout"; "memory": over the limit, or an allocation refused;
    "protocol": the function or its result does not fit (no such target, result is not JSON).
    type: the exception's qualified name, the signal's name, or "" where there is none.
    cause: what the exception was raised from, as EvidenceErrors are from what the model raised.
    remedy: of an EvidenceError.
    limit: the limit of the task that ended it, where one did; None for a machine or a GPU that has
    no more memory, and for a kernel that killed the process.
    """

    kind: FailureKind
    type: str
    message: str
    traceback: str = ""
    log_tail: str = ""
    cause: Cause | None = None
    remedy: Remedy | None = None
    limit: LimitReached | None = None

    @classmethod
    def described(cls, fields: Mapping[str, Any]) -> TaskFailure:
        """The failure that the child has described."""
        cause, remedy = fields.get("cause"), fields.get("remedy")
        return cls(
            **{
                **fields,
                "cause": Cause(**cause) if cause else None,
                "remedy": remedy if remedy in get_args(Remedy) else None,
            }
        )


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    value: the JSON result (None when `failure` is set). seconds: of the task alone.
    peak_rss: bytes, the highest resident memory of the task's process; pages of the imported
    libraries, shared with the forking parent, count. import_seconds: of the imports made before
    the task (paid once per worker process). facts: what the task told of itself on the way, see
    `worker.report_progress`.
    """

    value: Any = None
    failure: TaskFailure | None = None
    seconds: float = 0.0
    peak_rss: int = 0
    import_seconds: float = 0.0
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.failure is None


def end_of(what: str, code: int | None, log: str, *, out_of_memory: bool = False) -> TaskFailure:
    """The failure of a process that ended without an answer. code: as of subprocess."""
    if code is None or code >= 0:
        text = f"{what}: the process ended with exit code {code} and without an answer"
        return TaskFailure("crash", "", text, stack_of(log), log)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if out_of_memory and name == "SIGKILL":
        text = f"{what}: the kernel killed the process because memory ran out"
        return TaskFailure("memory", name, text, stack_of(log), log)
    text = f"{what}: the process was ended by {name}"
    if name == "SIGKILL":  # nobody here sent it
        text += ", most likely by the system because memory ran out"
    return TaskFailure("crash", name, text, stack_of(log), log)


def frames_of(stack: str) -> str:
    """The frames of a stack of faulthandler's, the innermost first; of several threads, those of
    the one that was running, else of the first that was started."""
    threads: list[tuple[str, list[str]]] = []
    for line in map(str.strip, stack.splitlines()):
        if line.endswith("(most recent call first):"):
            threads.append((line, []))
        elif line.startswith("File ") and threads:
            threads[-1][1].append(line)
    running = [frames for heading, frames in threads if heading.startswith("Current thread")]
    started = [frames for _, frames in threads[-1:]]
    return "\n".join((running or started or [[]])[0])


def stack_of(log: str) -> str:
    """Python's stack as faulthandler wrote it into the log at a crash or when told to stop."""
    start = max(log.rfind(STACK_MARK), log.rfind(CRASH_MARK))
    if start < 0:
        return ""
    lines = log[start:].splitlines()
    return "\n".join(line for line in lines if not line.startswith("Extension modules:"))
