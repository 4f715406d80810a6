"""Run steps that may block for ever, until one deadline."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Deadline:
    """A point in time, `seconds` from now, and the means to wait for nothing beyond it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, at least 0.05: a timeout of 0 means "none" to some libraries."""
        return max(self._end - time.monotonic(), 0.05)

    @property
    def passed(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() >= self._end

    def run(
        self,
        steps: Sequence[Callable[[], T]],
        *,
        late: Exception,
        hopeless: Callable[[Exception], bool],
        workers: int = 6,
        name: str = "lora-doctor",
    ) -> list[T | Exception]:
        """Results of `steps`, in order: each a value, the exception it raised, or `late`.

        Returns at the deadline, or when `hopeless` has held for two exceptions: then no further
        step is started, and those that have not ended are late. The threads are daemons of our own,
        because those of an executor are joined when the interpreter ends, which would wait for a
        server that hangs; one that is stuck dies with the process.
        """
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, T | Exception]] = queue.SimpleQueue()
        stop = threading.Event()
        for index in range(len(steps)):
            todo.put(index)

        def work() -> None:
            while not stop.is_set():
                try:
                    index = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((index, steps[index]()))
                except Exception as error:  # noqa: BLE001 - carried to the caller, who explains it
                    done.put((index, error))

        for number in range(min(workers, len(steps))):
            threading.Thread(target=work, name=f"{name}-{number}", daemon=True).start()
        outcomes: dict[int, T | Exception] = {}
        failures = 0
        while len(outcomes) < len(steps) and failures < 2:
            try:
                index, outcome = done.get(timeout=max(self._end - time.monotonic(), 0.001))
            except queue.Empty:
                break
            outcomes[index] = outcome
            failures += isinstance(outcome, Exception) and hopeless(outcome)
        stop.set()
        return [outcomes.get(index, late) for index in range(len(steps))]
