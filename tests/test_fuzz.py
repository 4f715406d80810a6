"""Hostile input for every reader, the same each time; `tests/fuzzing.py` says what has to hold."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("safetensors")

from tests.fuzz_targets import TARGETS
from tests.fuzzing import Target, fuzz

#: For each reader: some 30 seconds for all of them.
EXAMPLES = 100


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_whatever_is_read_is_read_or_refused_in_one_line(target: Target) -> None:
    """Time, memory, no surprise exception, the same twice, and nothing of it is run."""
    totals = fuzz(target, EXAMPLES)
    assert totals.inputs >= EXAMPLES // 2
