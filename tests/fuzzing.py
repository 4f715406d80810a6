"""Hostile input for every reader of the parent process, and what has to hold for all of it.

    pytest tests/test_fuzz.py                      # a few hundred inputs, always the same ones
    nox -s fuzz -- --minutes 120                   # new ones, as long as you like, with totals
    python -m tests.fuzzing --minutes 5 --select script

`tests/fuzz_targets.py` has the list; a new reader is one entry there. Whatever the input:

- it is read, or refused by an error of our own whose text is one line;
- twice the same input gives twice the same answer;
- within `SECONDS` of processor time and `MEMORY` bytes, measured;
- nothing of it is run: no process, no connection, no pickle, no code from its files, no file
  written or removed outside its folder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from lora_doctor.errors import LoraDoctorError

#: For one input, read once. The limits inside are lower; a busy machine takes its share.
SECONDS = 30.0
MEMORY = 800 << 20

#: Files by relative name, as they are put into an empty folder.
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Target:
    """A reader: files for it, and a call that reads them and says what came out.

    `read` is handed the folder. What it returns is compared between two runs; what it raises has to
    be an error of our own.
    """

    name: str
    files: st.SearchStrategy[Files]
    read: Callable[[Path], object]


class Violation(AssertionError):
    """A property does not hold; the message says which."""


@dataclass
class Totals:
    """What a run of one target did."""

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)
    #: Bytes: the most memory that a process had.
    peak: int = 0

    def add(self, other: Totals) -> None:
        """Count what another round has done."""
        self.inputs += other.inputs
        self.refused += other.refused
        self.slowest = max(self.slowest, other.slowest)
        self.failures += other.failures
        self.peak = max(self.peak, other.peak)


# --- what is forbidden while a reader works -------------------------------------------------

_FORBIDDEN = (
    "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "socket.connect",
    "pickle.find_class", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.symlink",
    "shutil.",
)  # fmt: skip
_seen: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event.startswith(_FORBIDDEN):
        _seen.append(f"{event} {arguments!r:.200}")
    elif event == "exec" and arguments:
        file = getattr(arguments[0], "co_filename", "")
        if file == "<unknown>" or Path(file).name in _INPUTS:
            _seen.append(f"code of {file} was run")
    elif event == "open" and len(arguments) == 3:
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and arguments[0] != os.devnull:
            _seen.append(f"{arguments[0]!r:.200} was opened for writing")


_INPUTS: set[str] = set()


@contextmanager
def _watched(files: Files) -> Iterator[list[str]]:
    """Forbidden things that happen in this block."""
    global _seen
    if not getattr(sys, "_lora_doctor_audited", False):
        sys.addaudithook(_audit)  # stays for the life of the process, silent outside this block
        sys._lora_doctor_audited = True  # type: ignore[attr-defined]
    _INPUTS.clear()
    _INPUTS.update(Path(name).name for name in files if name.endswith(".py"))
    # What Python compiles of a module that is imported for the first time is not to be written now.
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None
        sys.dont_write_bytecode = kept


# --- one input ------------------------------------------------------------------------------


def examine(target: Target, files: Files, folder: Path, totals: Totals) -> None:
    """Read the files twice; raises Violation where a property does not hold."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    folder.mkdir(exist_ok=True)
    answers = []
    totals.inputs += 1
    for _ in range(2):
        memory, start = _peak(), time.process_time()
        with _watched(files) as seen:
            answers.append(_answer(target, folder))
        seconds = time.process_time() - start
        totals.slowest = max(totals.slowest, seconds)
        if seen:
            raise Violation(f"{target.name}: {seen[0]}")
        if seconds > SECONDS:
            raise Violation(f"{target.name}: took {seconds:.1f} s of processor time")
        if _peak() - memory > MEMORY:
            raise Violation(f"{target.name}: took {(_peak() - memory) >> 20} MiB more memory")
    if answers[0] != answers[1]:
        raise Violation(f"{target.name}: {answers[0]!r:.300} first, then {answers[1]!r:.300}")
    totals.refused += answers[0].startswith("refused: ")


def _answer(target: Target, folder: Path) -> str:
    try:
        return f"read: {target.read(folder)!r}"
    except LoraDoctorError as error:
        text = str(error)
        if not text or "\n" in text or len(text) > 2_000:
            raise Violation(f"{target.name}: this is no line: {text!r:.300}") from error
        return f"refused: {text}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        raise Violation(
            f"{target.name}: {type(error).__name__} at {place}: {str(error)[:200]}"
        ) from error


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- many inputs ----------------------------------------------------------------------------


def fuzz(
    target: Target, examples: int, number: int | None = None, totals: Totals | None = None
) -> Totals:
    """Examine so many inputs; the same ones each time, or with `number` those of this seed.

    What was done is added to `totals`.

    Raises what hypothesis does: the smallest input that violates a property.
    """
    totals = totals or Totals()
    with tempfile.TemporaryDirectory(prefix="lora-doctor-fuzz-") as place:
        folder = Path(place, "input")

        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=number is None,
            database=None,
            print_blob=False,
            verbosity=Verbosity.normal,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(target.files)
        def run(files: Files) -> None:
            examine(target, files, folder, totals)

        if number is not None:
            run = seed(number)(run)
        run()
    return totals


def main(arguments: list[str]) -> int:
    """Fuzz for some minutes and print the totals, however it ends; 1 when a property was violated.

    Each round is a process of its own: one that dies of its input, or never ends, is a violation.
    """
    from tests.fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--select", action="append", help="name of a target; may be repeated")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--examples", type=int, default=200, help="inputs of one round")
    options = parser.parse_args(arguments)
    chosen = [each for each in TARGETS if not options.select or each.name in options.select]
    if not chosen:
        parser.error(f"no such target; there are {', '.join(each.name for each in TARGETS)}")
    totals = {target.name: Totals() for target in chosen}
    end = time.monotonic() + 60 * options.minutes
    number = options.seed
    ended = "the time is up"
    for each in _ENDING:
        # One that is ignored (nohup, a shell's background job) stays so.
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, _end)
    try:
        while time.monotonic() < end:
            for target in chosen:
                if time.monotonic() < end:
                    round_of(target, options.examples, number, totals[target.name])
            number += 1
    except KeyboardInterrupt as stop:
        ended = f"ended by {stop}" if str(stop) else "interrupted"
    finally:
        _tell(totals, f"seeds {options.seed} to {number}; {ended}")
    return 1 if any(each.failures for each in totals.values()) else 0


_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)
#: Seconds that a round may take: its inputs have their own limits, far below.
_ROUND_SECONDS = 1800.0


def _end(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _tell(totals: Mapping[str, Totals], rest: str) -> None:
    for name, each in totals.items():
        print(
            f"{name}: {each.inputs:,} inputs, {each.refused:,} refused, "
            f"slowest {each.slowest:.1f} s, {len(each.failures)} violations"
        )
    peak = max(each.peak for each in totals.values())
    count = sum(each.inputs for each in totals.values())
    violations = sum(len(each.failures) for each in totals.values())
    print(
        f"all: {count:,} inputs, {violations} violations; most memory of a process "
        f"{peak >> 20} MiB; {rest}",
        flush=True,
    )


def round_of(target: Target, examples: int, number: int, sums: Totals) -> None:
    """Fuzz a target in a process of its own and add what it did to `sums`."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _in_child(target, examples, number, writing)
    os.close(writing)
    code: int | None = None
    try:
        answer = _read_all(reading, time.monotonic() + _ROUND_SECONDS)
        if answer is not None:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(reading)
        if code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if answer is None:
        failure = f"did not end within {_ROUND_SECONDS:.0f} s"
    elif not answer:
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        failure = f"the process was ended by an input: {how}"
    else:
        sums.add(Totals(**json.loads(answer)))
        return
    text = f"seed {number}: {failure}"
    sums.failures.append(text)
    print(f"--- {target.name}, {text}", flush=True)


def _read_all(descriptor: int, end: float) -> bytes | None:
    """What comes until the other side is closed; None when that takes too long."""
    content = b""
    while select.select([descriptor], [], [], max(end - time.monotonic(), 0))[0]:
        piece = os.read(descriptor, 65_536)
        if not piece:
            return content
        content += piece
    return None


def _in_child(target: Target, examples: int, number: int, writing: int) -> NoReturn:
    """Never returns: what is behind `round_of` belongs to the parent."""
    code = 1
    try:
        for each in _ENDING:
            signal.signal(each, signal.SIG_DFL)
        sums = Totals()
        _round(target, examples, number, sums)
        sums.peak = _peak()
        with os.fdopen(writing, "wb") as stream:
            stream.write(json.dumps(asdict(sums)).encode())
        code = 0
    except KeyboardInterrupt:
        pass  # the parent has it, too
    except BaseException:  # noqa: BLE001 - a traceback, and the parent counts it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _round(target: Target, examples: int, number: int, sums: Totals) -> None:
    try:
        fuzz(target, examples, number, sums)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit of a reader is one, too
        for each in getattr(error, "exceptions", (error,)):  # hypothesis may find several at once
            notes = "\n".join(getattr(each, "__notes__", ()))
            text = f"seed {number}: {type(each).__name__}: {each}\n{notes}"
            sums.failures.append(text)
            print(f"--- {target.name}, {text[:4_000]}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
