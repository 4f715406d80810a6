"""What PEFT, transformers and bitsandbytes warn of during a run is evidence: none is swallowed."""

from __future__ import annotations

import logging
import warnings

import pytest

import lora_doctor
from lora_doctor.model.library_answers import warnings_heard
from lora_doctor.reports import full
from lora_doctor.sandbox.worker import Worker


def test_what_peft_warns_of_is_a_note_that_verbose_shows(worker: Worker) -> None:
    """GPT-2's layers are `Conv1D`: PEFT turns `fan_in_fan_out` on, and says so."""
    found = lora_doctor.check("arch:gpt2", {"target_modules": ["c_attn"]}, worker=worker)
    assert found.before is not None
    told = [note.text for note in found.before.notes if note.kind == "warned"]
    assert any("fan_in_fan_out is set to False" in text for text in told), told
    assert "warned" not in full.render(found)
    whole = " ".join(full.render(found, verbose=True).split())
    assert "peft warned: fan_in_fan_out" in whole


def test_logged_and_raised_warnings_are_told_by_library(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told: list[tuple[str, str]] = []
    spaces = {"__name__": "peft.tuners.made_up", "warnings": warnings}
    exec("def warn(): warnings.warn('a raised one', stacklevel=2)", spaces)
    log = logging.getLogger("bitsandbytes.made_up")
    before = logging.getLogger("bitsandbytes").propagate
    with warnings_heard(lambda *said: told.append(said)):
        spaces["warn"]()  # type: ignore[operator]
        log.warning("a logged one")
        log.info("not a warning")
    assert told == [("peft", "a raised one"), ("bitsandbytes", "a logged one")]
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger("bitsandbytes").propagate is before


def test_a_warning_of_nobody_in_particular_is_passed_on() -> None:
    with pytest.warns(UserWarning, match="mine"), warnings_heard(lambda *said: None):
        warnings.warn("mine", stacklevel=1)
