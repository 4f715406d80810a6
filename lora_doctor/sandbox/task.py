"""One task in the child process: followed until it has answered, or is stopped at a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lora_doctor.errors import LimitReached
from lora_doctor.sandbox.outcome import (
    MEMORY_OPTION,
    TIME_OPTION,
    Outcome,
    TaskFailure,
    end_of,
    frames_of,
    stack_of,
)
from lora_doctor.sandbox.process import GRACE_SECONDS, ChildProcess
from lora_doctor.text import size_in_words

POLL_SECONDS = 0.05  # how often resident memory and the clock are looked at


class Task:
    """A request that was sent to the child, and what came back so far.

    request: its fields are those of `Worker.run`, and "id", which no other task of this child has.
    progress: called with each line that the task reports.
    """

    def __init__(
        self,
        child: ChildProcess,
        request: dict[str, Any],
        progress: Callable[[str], None] | None,
    ) -> None:
        self.child = child
        self.identity: int = request["id"]
        self.target: str = request["target"]
        self.time_limit: float = request["time_limit"]
        self.memory_limit: int | None = request["memory_limit"]
        self.pid: int | None = None  # known once the child says that it has started
        self.peak_rss = 0
        self.processor_seconds = 0.0
        self.facts: dict[str, str] = {}
        self.stage = ""  # what the task last said that it does
        self.unresponsive = False  # not even the child reacts when the task is to be stopped
        self._progress = progress
        self._answer: dict[str, Any] | None = None
        self._stopped: TaskFailure | None = None  # we ended it, and why
        self._exit_code: int | None = None
        self._over: float | None = None  # when it answered or was stopped: then it must end soon
        self._log_start, self._oom_kills = child.log_size(), _oom_kills()
        self._began = time.monotonic()
        child.send(request)  # a closed pipe shows as the end of messages

    def follow(self) -> Outcome:
        """Wait until the task has ended, by itself or by a limit."""
        while not self.unresponsive:
            message = self.child.receive(POLL_SECONDS)
            now = time.monotonic()
            if message is None:  # the end of the process: of the task's own, or of the worker's
                self._exit_code = self.child.wait(GRACE_SECONDS)
                break
            if message.get("id") == self.identity:
                self._take(message, now)
                if message.get("kind") == "exited":
                    break
            self.child.trim_log()
            self._watch(now)
        return self._outcome(time.monotonic() - self._began)

    def _take(self, message: dict[str, Any], now: float) -> None:
        """Enter what the child says about this task."""
        kind = message.get("kind")
        if kind == "started":
            self.pid, self._began = message["pid"], now
        elif kind == "progress":
            self.stage = message["text"]
            self.facts |= message.get("facts", {})
            if self._progress is not None:
                self._progress(message["text"])
        elif kind == "answer" and self._stopped is None:
            self._answer, self._over = message, now
            self.peak_rss = max(self.peak_rss, message["peak"])
        elif kind == "exited":
            self._exit_code, self.processor_seconds = message["code"], message["processor"]
            self.peak_rss = max(self.peak_rss, message["peak"])

    def _watch(self, now: float) -> None:
        """Look at memory and clock; stop what is over a limit, or does not end when it should."""
        rss = self.child.resident(self.pid, self.memory_limit)
        self.peak_rss = max(self.peak_rss, rss)
        if self._over is None:
            self._stopped = self._limit_reached(rss, now - self._began)
            if self._stopped is not None:
                self._over = now
                self.child.stop(self.identity, stack=self._stopped.kind == "timeout")
        elif now - self._over > 2 * GRACE_SECONDS:
            self.unresponsive = True
        elif now - self._over > GRACE_SECONDS:
            self.child.stop(self.identity, stack=False)

    def _limit_reached(self, rss: int, seconds: float) -> TaskFailure | None:
        if self.memory_limit is not None and rss > self.memory_limit:
            used, limit = size_in_words(rss, 2), size_in_words(self.memory_limit, 2)
            text = f"{self.target} used {used} of memory, limit {limit}"
            return TaskFailure("memory", "", text, limit=self._memory_limit(rss, self.memory_limit))
        if seconds > self.time_limit:
            text = f"{self.target} did not finish in {self.time_limit:g} s"
            struck = LimitReached("time", self.time_limit, seconds, TIME_OPTION, "", self.stage)
            return TaskFailure("timeout", "", text, limit=struck)
        return None

    def _memory_limit(self, reached: int, limit: int) -> LimitReached:
        return LimitReached("memory", limit, reached, MEMORY_OPTION, "", self.stage)

    def _outcome(self, seconds: float) -> Outcome:
        log = self.child.log_tail(self._log_start)
        failure = self._failure(log)
        if failure is not None:
            stack, limit = stack_of(log), failure.limit
            failure = replace(
                failure,
                log_tail=log,
                traceback=failure.traceback or stack,
                limit=replace(limit, stack=frames_of(stack)) if limit is not None else None,
            )
        answer = self._answer
        return Outcome(
            value=answer["value"] if answer is not None and failure is None else None,
            failure=failure,
            seconds=answer["seconds"] if answer is not None else seconds,
            peak_rss=self.peak_rss,
            import_seconds=self.child.import_seconds,
            facts=self.facts,
        )

    def _failure(self, log: str) -> TaskFailure | None:
        if self._stopped is not None:
            return self._stopped
        if self._answer is None:
            killed = _oom_kills() > self._oom_kills
            return end_of(self.target, self._exit_code, log, out_of_memory=killed)
        described = self._answer["failure"]
        if described is None:
            return None
        failure = TaskFailure.described(described)
        if failure.kind == "memory" and self._answer.get("ceiling") and self.memory_limit:
            # Refused by the backstop of the limit: too fast to be seen growing.
            return replace(failure, limit=self._memory_limit(self.peak_rss, self.memory_limit))
        return failure


def _oom_kills() -> int:
    """How many processes the Linux kernel has killed for memory so far; 0 where it does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0
