"""Make all rows: spread over processes, kept as they come, gone on with where it was broken off.

`rows.jsonl` in the output folder holds one row a line, under a first line that says which versions
they are of. `census.json` is the table: the same input gives the same bytes.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import importlib.metadata
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor._version import __version__
from lora_doctor.census.pairs import Pair, task
from lora_doctor.census.row import COLUMNS, Row, safely
from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.files import write_text
from lora_doctor.sandbox.worker import Worker

SCHEMA_VERSION = "1"
_PACKAGES = ("transformers", "peft", "torch", "bitsandbytes")
#: Makes one row; `spread` is handed one for each process.
Judge = Callable[[Pair], Row]


@dataclass(frozen=True)
class Census:
    """All rows, sorted, and the versions that they are of."""

    versions: dict[str, str]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        rows = []
        for row in self.rows:
            values = row.to_json()
            for cost in ("seconds", "processor_seconds", "peak_memory"):  # differ from run to run
                del values[cost]
            rows.append(values)
        return {
            "schema_version": SCHEMA_VERSION,
            "versions": self.versions,
            "columns": dict(COLUMNS),
            "rows": rows,
        }


def take(
    folder: Path,
    *,
    select: Sequence[str] = (),
    classes: Sequence[str] = (),
    jobs: int = 2,
    engine: str = "local",
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Census:
    """Make the rows that are not yet in ``folder``, and write ``census.json`` there.

    Args:
        folder: is made when it is not there.
        select: patterns (``qwen*``) of model types or auto classes; all without.
        classes: patterns (``AutoModelFor*Classification``) of the auto classes whose models are
            rows; those for generation without.
        jobs: processes at a time.
        engine: ``local``, or ``ray`` for the machines of a Ray cluster.
        keep: a folder for tiny models and batches, one folder in it for each row.
        tell: called with a line on what is done and how long it may still take.

    Raises:
        InputError: nothing is selected, or the folder holds rows of another environment.
        EvidenceError: the libraries cannot be imported, or there is no Ray.
    """
    versions = _versions()
    chosen = _select(_all_pairs(classes, tell), select)
    file = folder / "rows.jsonl"
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder, file)
        done = _read(file, versions)
    open_pairs = [pair for pair in chosen if pair not in done]
    began = time.monotonic()
    spread = _engine(engine)
    for count, row in enumerate(spread(open_pairs, jobs, keep), start=1):
        with _written(file), file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row.to_json()) + "\n")
        done[Pair(row.auto_class, row.model_type)] = row
        left = (time.monotonic() - began) / count * (len(open_pairs) - count)
        name = f"{row.model_type} ({task(row.auto_class)})"
        tell(f"{count} of {len(open_pairs)} rows, {_minutes(left)} left: {name}")
    census = Census(versions, tuple(done[pair] for pair in sorted(chosen)))
    text = json.dumps(census.to_json(), indent=1, ensure_ascii=False) + "\n"
    write_text(folder / "census.json", text)
    return census


def totals(census: Census) -> dict[str, int]:
    """What was asked to how many rows say yes; the first is the number of rows."""
    counts = {"pairs of auto class and model type": len(census.rows)}
    for name, meaning in COLUMNS.items():
        counts[meaning] = sum(row.cells[name].status == "yes" for row in census.rows)
    return counts


def load(folder: Path) -> Census:
    """The census that :func:`take` wrote into a folder.

    Raises:
        InputError: there is none.
    """
    file = folder / "census.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        rows = tuple(Row.from_json(item) for item in data["rows"])
        return Census(data["versions"], rows)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: is not a census: {error}") from error


def spread_locally(pairs: Sequence[Pair], jobs: int, keep: Path | None) -> Iterator[Row]:
    """Rows as they are done, by ``jobs`` processes that import the libraries once each."""
    waiting: queue.SimpleQueue[Pair] = queue.SimpleQueue()
    for pair in pairs:
        waiting.put(pair)
    rows: queue.SimpleQueue[Row] = queue.SimpleQueue()
    stop = threading.Event()

    workers = [Worker(threads=1) for _ in range(max(1, jobs))]

    def work(worker: Worker) -> None:
        with worker:
            while not stop.is_set():
                try:
                    pair = waiting.get_nowait()
                except queue.Empty:
                    return
                rows.put(safely(pair, worker, keep))

    threads = [threading.Thread(target=work, args=(one,), daemon=True) for one in workers]
    for thread in threads:
        thread.start()
    try:
        for _ in pairs:
            yield rows.get()
    finally:
        stop.set()
        for worker in workers:  # rows that nobody waits for any more are broken off
            worker.stop()
        for thread in threads:
            thread.join()


def _engine(name: str) -> Callable[[Sequence[Pair], int, Path | None], Iterable[Row]]:
    if name == "local":
        return spread_locally
    if name != "ray":
        raise InputError(f"--engine {name!r}: expected local or ray")
    try:
        importlib.import_module("ray")
    except ImportError as error:
        raise EvidenceError(f"--engine ray: {error}; pip install 'lora-doctor[ray]'") from error
    from lora_doctor.census.ray_engine import spread_with_ray

    return spread_with_ray


def _all_pairs(classes: Sequence[str], tell: Callable[[str], None]) -> list[Pair]:
    tell("reading the architectures of the installed transformers")
    with Worker(threads=1) as worker:
        outcome = worker.run(
            "lora_doctor.census.pairs:gather", {"classes": list(classes)}, time_limit=120
        )
        missing = dict(worker.import_errors)
    if outcome.failure is not None or not {"torch", "transformers", "peft"}.isdisjoint(missing):
        reason = "; ".join(f"{name}: {text}" for name, text in missing.items())
        raise EvidenceError(
            "a census needs a training environment: "
            f"{reason or (outcome.failure and outcome.failure.message)}; "
            "pip install 'lora-doctor[stack]'"
        )
    if not outcome.value:
        raise InputError(
            f"--class {' '.join(classes)}: no auto class of the installed transformers"
        )
    return [Pair(*item) for item in outcome.value]


def _select(pairs: Sequence[Pair], patterns: Sequence[str]) -> list[Pair]:
    if not patterns:
        return sorted(pairs)
    chosen = set()
    for pattern in patterns:
        found = {
            pair
            for pair in pairs
            if fnmatch.fnmatchcase(pair.model_type, pattern)
            or fnmatch.fnmatchcase(pair.auto_class, pattern)
        }
        if not found:
            raise InputError(
                f"--select {pattern!r}: no model type or auto class among the rows; "
                "--class chooses auto classes beside those for generation"
            )
        chosen |= found
    return sorted(chosen)


def _versions() -> dict[str, str]:
    found = {"lora-doctor": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _read(file: Path, versions: dict[str, str]) -> dict[Pair, Row]:
    """The rows that are done; the file is begun where there is none.

    Raises:
        InputError: the rows are of other versions.
    """
    if not file.exists():
        file.write_text(json.dumps({"versions": versions}) + "\n", encoding="utf-8")
        return {}
    head, *lines = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    try:
        of = json.loads(head)["versions"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file}: is not the rows of a census; use another -o") from None
    if of != versions:
        raise InputError(f"{file}: holds rows of other versions ({of}); use another -o")
    rows = {}
    for line in lines:
        try:
            row = Row.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError):
            continue  # the line that was being written when the run was broken off
        rows[Pair(row.auto_class, row.model_type)] = row
    return rows


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """What the system says of this file or folder, as an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror}; make room or use another -o"
        ) from error


def _refuse_foreign(folder: Path, rows: Path) -> None:
    """Raises InputError for a folder that holds tables of something else, or rows that are no
    plain file."""
    if os.path.lexists(rows) and not rows.is_file():
        raise InputError(f"{rows}: is not a file; use another -o")
    if rows.exists():
        return
    for name in ("census.json", "census.html"):
        if (folder / name).is_file():
            raise InputError(
                f"{folder / name}: exists and was not written by a census; use another -o"
            )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
