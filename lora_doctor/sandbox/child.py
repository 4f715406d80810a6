"""The child's side of `worker.Worker`: import once, then one fork per task.

No operator of torch may run in this process before a fork: it would start thread pools, and a fork
has none of their threads but all of their locks. Importing only is safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from lora_doctor.errors import Cause, EvidenceError
from lora_doctor.sandbox import worker
from lora_doctor.sandbox.deferred import compiling_when_called
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.sandbox.process import STACK_MARK, STACK_SECONDS
from lora_doctor.text import single_line

ANSWER_BYTES = 64 * 1024 * 1024
LINE_CHARS, TEXT_CHARS = 2_000, 100_000
TICK = 20  # milliseconds between looks at the task where the system cannot signal its end
LATE_SECONDS = 30
# Between two looks at resident memory a task can grow without being seen; the address-space
# backstop must therefore lie above the limit, and far enough for memory that is mapped, not used.
BACKSTOP_FACTOR, BACKSTOP_BYTES = 2, 1 << 30


class Channel:
    """Requests in, messages out; on private descriptors that no library knows of."""

    def __init__(self) -> None:
        self.requests, self._answers = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        for stream in (sys.stdout, sys.stderr):
            # Unbuffered enough for a crash to leave its last words; never an encoding error.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
        self._buffer = b""
        self._lock = threading.Lock()

    def send(self, kind: str, **message: Any) -> None:
        # The newline in front closes the half line of a task killed while it wrote.
        data = b"\n" + json.dumps({"kind": kind, **message}, allow_nan=False).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._answers, data) :]

    def pending(self) -> bool:
        """Whether `receive` has something to read, or the end to tell."""
        return b"\n" in self._buffer or bool(select.select([self.requests], [], [], 0)[0])

    def receive(self) -> dict[str, Any]:
        """The next request. Raises EOFError when there will be none."""
        while b"\n" not in self._buffer:
            chunk = os.read(self.requests, 1 << 16)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        request: dict[str, Any] = json.loads(line)
        return request


def main(setup_text: str) -> None:
    setup: dict[str, Any] = json.loads(setup_text)
    sys.argv[:] = ["lora-doctor-worker"]
    channel = Channel()
    known = set(sys.path)
    sys.path.extend(entry for entry in setup["path"] if entry not in known)
    faulthandler.enable(file=2)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, file=2)
    preload(channel, setup)
    with contextlib.suppress(EOFError):  # the end of requests is how we are told to end
        serve(channel, setup)
    os._exit(0)


def serve(channel: Channel, setup: dict[str, Any]) -> None:
    """Fork for each request; or, where we cannot, run a single one here. Raises EOFError."""
    if setup["fork"]:
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a task abandons becomes our child
    while setup["fork"]:
        request = channel.receive()
        if "target" in request:  # else: "stop", for a task that had already ended
            supervise(channel, request, setup)
    request = channel.receive()
    watch = threading.Thread(target=end_with_requests, args=(channel.requests,), daemon=True)
    watch.start()
    # Should model code keep that thread from running: a clock that needs no interpreter.
    faulthandler.dump_traceback_later(min(request["time_limit"], 1e6) + LATE_SECONDS, exit=True)
    channel.send("started", id=request["id"], pid=os.getpid())
    run(channel, request, setup)


def preload(channel: Channel, setup: dict[str, Any]) -> None:
    """Import what every task needs. Ends the process if the parent goes away meanwhile."""
    wake, awake = os.pipe()
    watch = threading.Thread(target=end_with_parent, args=(channel.requests, wake, setup["parent"]))
    if os.name == "posix":
        watch.start()
    began = time.monotonic()
    errors = {}
    # Nearly all that an import makes stays: to look for garbage in it is a sixth of its time.
    gc.disable()
    with contextlib.ExitStack() as put_off:
        for name in setup["preload"]:
            channel.send("importing", name=name)
            try:
                importlib.import_module(name)
                if name == "torch":
                    put_off.enter_context(compiling_when_called())
            except BaseException as error:  # noqa: BLE001 - also SystemExit of a broken library
                errors[name] = _line(f"{type(error).__name__}: {error}")
    seconds = time.monotonic() - began
    os.close(awake)
    if os.name == "posix":
        watch.join()  # no thread of ours may live when we fork
    os.close(wake)
    gc.freeze()  # the collector then leaves the pages of the libraries shared between the forks
    gc.enable()
    channel.send("ready", seconds=seconds, errors=errors)


def end_with_parent(requests: int, wake: int, parent: int) -> None:
    poll = select.poll()
    poll.register(requests, 0)  # hang-up only: requests stay where they are
    poll.register(wake, 0)
    while True:
        for descriptor, _event in poll.poll(500):
            if descriptor == wake:
                return
            os._exit(1)
        if os.getppid() != parent:  # a fork of the parent may hold the pipe open
            os._exit(1)


def end_with_requests(requests: int) -> None:
    """In a task without a supervisor: end, with all we started, when the parent is gone."""
    while os.read(requests, 1 << 16):
        continue
    if os.name == "posix":
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def supervise(channel: Channel, request: dict[str, Any], setup: dict[str, Any]) -> None:
    """Fork, run the task there, and see to its end and to that of all it started."""
    pid = os.fork()
    if pid == 0:
        end_with_worker()
        os.close(channel.requests)
        run(channel, request, setup)
        os._exit(0)
    with contextlib.suppress(OSError):  # the task does the same, and may have been faster
        os.setpgid(pid, pid)
    channel.send("started", id=request["id"], pid=pid)
    poll = select.poll()
    poll.register(channel.requests, select.POLLIN)
    try:
        ended = os.pidfd_open(pid)
        poll.register(ended, select.POLLIN)
    except (AttributeError, OSError):  # before Python 3.9 on Linux 5.3, or a sandbox
        ended = -1
    try:
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            poll.poll(500 if ended >= 0 else TICK)
            if os.getppid() != setup["parent"]:
                raise EOFError
            stop = channel.receive() if channel.pending() else {}
            if stop.get("stop") == request["id"]:
                if stop["stack"]:
                    os.write(2, f"\n{STACK_MARK}\n".encode())
                    os.kill(pid, signal.SIGUSR1)
                    time.sleep(STACK_SECONDS)
                break
    finally:
        if ended >= 0:
            os.close(ended)
        # Before the task is reaped: until then its process id cannot belong to another.
        os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        kill_strays()
    channel.send(
        "exited",
        id=request["id"],
        code=os.waitstatus_to_exitcode(status),
        peak=usage.ru_maxrss * 1024,  # Linux counts in KiB
        processor=usage.ru_utime + usage.ru_stime,
    )


def kill_strays() -> None:
    """Kill what the task left behind in groups of its own: being its subreaper, we have become
    the parent of all of it."""
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
                children = [int(word) for word in file.read().split()]
        except OSError:
            return  # not Linux, or a kernel without the list
        if not children:
            return
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def end_with_worker() -> None:
    """In the task's process: die with the worker, and be the first that a short memory kills."""
    worker = os.getppid()
    os.setpgid(0, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker:
        os._exit(1)
    with (
        contextlib.suppress(OSError),  # where there is no such file the system chooses by itself
        open("/proc/self/oom_score_adj", "w", encoding="ascii") as file,
    ):
        file.write("1000")


def limit_resources(memory_limit: int | None, *, cuda: bool) -> int | None:
    """No core files; and a backstop for allocations too fast for the watcher to see: its height in
    bytes of data, ``None`` where there is none."""
    if os.name != "posix":
        return None
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # Not with CUDA: it maps far more than it uses.
    if memory_limit is None or sys.platform != "linux" or cuda:
        return None
    with open("/proc/self/status", encoding="ascii") as file:
        data = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    ceiling = data + BACKSTOP_FACTOR * memory_limit + BACKSTOP_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY and ceiling >= soft:
        return None
    resource.setrlimit(resource.RLIMIT_DATA, (ceiling, hard))
    return ceiling


def run(channel: Channel, request: dict[str, Any], setup: dict[str, Any]) -> None:
    """Run the task in this very process and send its answer. Does not raise."""
    task, identity = os.getpid(), request["id"]

    def tell(text: str, facts: Mapping[str, str]) -> None:
        channel.send("progress", id=identity, text=_line(text), facts=dict(facts))

    worker._progress_sink = tell
    value, failure, ceiling = None, None, None
    began = time.monotonic()
    try:
        ceiling = limit_resources(request["memory_limit"], cuda=setup["cuda"])
        if request["import_cwd"]:
            sys.path.insert(0, os.getcwd())
        function = resolve(request["target"], setup["packages"])
        result = function(**request["kwargs"])
    except BaseException as error:  # noqa: BLE001 - also SystemExit of model code: all is an answer
        seconds = time.monotonic() - began
        failure = describe(error)
    else:
        seconds = time.monotonic() - began
        try:
            value = worker.to_json(result)
            if len(json.dumps(value)) > ANSWER_BYTES:
                raise TypeError(f"result is larger than {ANSWER_BYTES >> 20} MiB")
        except (TypeError, ValueError, RecursionError) as error:  # ValueError: an int too long
            value, failure = None, protocol(f"{request['target']}: {error}")
    if os.getpid() != task:  # model code forked and its fork came back up to here
        os._exit(0)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # model code closed or replaced it
    channel.send(
        "answer", id=identity, value=value, failure=failure, seconds=seconds, peak=peak_resident(),
        ceiling=ceiling,
    )  # fmt: skip


def peak_resident() -> int:
    """The highest resident memory of this process so far in bytes; 0 where nothing tells."""
    if sys.platform == "linux":  # not getrusage: after an exec it still has the parent's peak
        with open("/proc/self/status", encoding="ascii") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line[:6] == "VmHWM:"), 0)
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resolve(target: str, packages: list[str]) -> Any:
    """The function that "module:name" means. Raises TargetError."""
    module_name, _, name = target.partition(":")
    if module_name.partition(".")[0] not in packages:
        raise TargetError(f"{target}: not in {', '.join(packages)}, no other code may be a target")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it needs is not
        raise TargetError(f"{target}: no module {error.name}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise TargetError(f"{target}: the module has no function {name!r}")
    return function


def _line(text: str) -> str:
    return single_line(text, LINE_CHARS)


class TargetError(Exception):
    """The target of a request cannot be called."""


def protocol(message: str) -> dict[str, str]:
    return {"kind": "protocol", "type": "", "message": _line(message)}


def describe(error: BaseException) -> dict[str, Any]:
    """The fields of `outcome.TaskFailure` for an exception."""
    if isinstance(error, TargetError):
        return protocol(str(error))
    cls = type(error)
    name = cls.__qualname__
    if cls.__module__ != "builtins":
        name = f"{cls.__module__}.{name}"
    try:
        message = str(error)
    except Exception as broken:  # noqa: BLE001 - remote code's exceptions may not even be showable
        message = f"(no text: its __str__ raised {type(broken).__name__})"
    if isinstance(error, SystemExit):
        message = f"the code called sys.exit({message})"
    kind = "exception"
    # A GPU without memory is told by name: torch.OutOfMemoryError.
    if is_out_of_memory(error) or cls.__name__ == "OutOfMemoryError":
        kind = "memory"
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as broken:  # noqa: BLE001
        text = f"(no traceback: {type(broken).__name__})"
    cause = None
    if error.__cause__ is not None:
        behind = Cause.of(error.__cause__)
        cause = {"type": behind.type, "message": _line(behind.message)}
    return {
        "kind": kind,
        "type": name,
        "message": _line(message) or name,
        "traceback": text[-TEXT_CHARS:],  # the end has the innermost frames and the exception
        "cause": cause,
        "remedy": (isinstance(error, EvidenceError) and error.remedy) or "",
    }
