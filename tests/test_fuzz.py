"""Hostile input for every reader, the same each time; `tests/fuzzing.py` says what has to hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("safetensors")

from hypothesis import strategies as st

from tests.cli import ROOT
from tests.fuzz_targets import TARGETS
from tests.fuzzing import Target, Totals, fuzz, round_of

#: For each reader: some 30 seconds for all of them.
EXAMPLES = 100


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_whatever_is_read_is_read_or_refused_in_one_line(target: Target) -> None:
    """Time, memory, no surprise exception, the same twice, and nothing of it is run."""
    totals = fuzz(target, EXAMPLES)
    assert totals.inputs >= EXAMPLES // 2


def _kill(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _leave(_: Path) -> None:
    os._exit(0)


def _stop(_: Path) -> None:
    raise SystemExit(0)


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize(
    ("read", "says"), [(_kill, "SIGKILL"), (_leave, "exit code 0"), (_stop, "SystemExit")]
)
def test_an_input_that_ends_the_process_is_a_violation(
    read: object, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Totals never fail to appear because a reader took the fuzzer along."""
    target = Target("bad", st.just({"x": b""}), read)  # type: ignore[arg-type]
    sums = Totals()
    round_of(target, 5, 31_000, sums)
    assert len(sums.failures) == 1 and says in sums.failures[0] and "31000" in sums.failures[0]
    assert f"--- bad, {sums.failures[0][:20]}" in capfd.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_fuzzer_that_is_stopped_prints_its_totals() -> None:
    """`timeout` sends SIGTERM, a terminal that closes SIGHUP."""
    command = [sys.executable, "-m", "tests.fuzzing", "--minutes", "5", "--examples", "20"]
    running = subprocess.Popen(
        [*command, "--select", TARGETS[0].name], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    time.sleep(8)
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert out.splitlines()[0].startswith(f"{TARGETS[0].name}: ")
    assert out.splitlines()[-1].startswith("all: ") and "ended by SIGTERM" in out
