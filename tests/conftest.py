"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lora_doctor.isolation import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """One child process for all tests that use the Python API: its imports are paid once."""
    with Worker(threads=1) as running:
        running.start()
        yield running
