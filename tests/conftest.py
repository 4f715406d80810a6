"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lora_doctor.sandbox.worker import Worker
from tests import chromium, warm

# Before anything imports torch: on tiny matrices several threads only wait for each other, and on
# a busy machine they wait actively (measured: 1.3 s of processor time become 3 to 6).
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A stored answer would hide what a test is there to see.
os.environ["LORA_DOCTOR_CHECK_NO_CACHE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def warm_processes() -> Iterator[None]:
    """The command line and sandboxes start with their imports made: see `tests.warm`."""
    with warm.warm_processes():
        yield


@pytest.fixture(autouse=True)
def environment_of_its_own() -> Iterator[None]:
    """What a test, or a library in it (TrainingArguments), puts into the environment of this
    process ends with it: later tests start processes with the environment that the session had."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``gathered("LD615", index_mismatch=x)``: what the functions that a rule calls give; a
    function is called in the place of the other."""

    def replace(code: str, **values: Any) -> None:
        from tests.rule_asking import RULES

        module = sys.modules[RULES[code].__module__]
        for name, value in values.items():
            instead = value if callable(value) else lambda *_, value=value, **__: value
            monkeypatch.setattr(module, name, instead)

    return replace


@pytest.fixture(scope="session")
def worker(warm_processes: None) -> Iterator[Worker]:
    """One child process for all tests that use the Python API: its imports are paid once."""
    with Worker(threads=1) as running:
        running.start()
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[chromium.Chromium]:
    """One browser for all tests of pages; on CI it must be there."""
    executable = chromium.find()
    if executable is None:
        reason = f"no browser found ({', '.join(chromium.NAMES)})"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    with chromium.running(executable) as running:
        yield running
