"""What a run has to say keeps its meaning whatever its words are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import lora_doctor  # noqa: E402
from lora_doctor import reports  # noqa: E402
from lora_doctor.census.cells import cell  # noqa: E402
from lora_doctor.engine.child_failures import evidence_error  # noqa: E402
from lora_doctor.engine.limits import Limits  # noqa: E402
from lora_doctor.errors import Cause, EvidenceError  # noqa: E402
from lora_doctor.results.error_report import ErrorReport  # noqa: E402
from lora_doctor.results.note import Note  # noqa: E402
from lora_doctor.results.verification import Verification  # noqa: E402
from lora_doctor.sandbox.worker import Worker  # noqa: E402

RECIPE = {"target_modules": ["proj"], "r": 4}
WHY = "the base model does not run without adapters: text: RuntimeError: no kernel"


class Blind(torch.nn.Module):
    """Trains on text; its forward takes pictures too, and refuses them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(64, 16)
        self.proj = torch.nn.Linear(16, 64)

    def get_input_embeddings(self) -> Any:
        return self.table

    def forward(self, input_ids: Any = None, pixel_values: Any = None, labels: Any = None) -> Any:
        if pixel_values is not None:
            raise RuntimeError("the eyes are shut")
        logits = self.proj(self.table(input_ids))
        if labels is None:
            return (logits,)
        return (torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits)


def blind() -> Blind:
    return Blind()


def refuse() -> None:
    """Run in a child process."""
    try:
        _ = {}["type"]
    except KeyError as error:
        raise EvidenceError("in our own words") from error


def test_a_note_keeps_its_kind_from_the_child_process_to_the_report() -> None:
    with Worker(threads=1) as worker:
        diagnosis = lora_doctor.check("tests.test_notes:blind", RECIPE, worker=worker)
    assert diagnosis.before is not None
    kinds = [note.kind for note in diagnosis.before.notes]
    assert kinds.count("not-fed") == 1, diagnosis.before.notes
    assert [note.kind for note in diagnosis.notes] == ["not-fed"]
    written = json.loads(reports.render(diagnosis, "json"))
    assert written["notes"][0]["kind"] == "not-fed"
    assert Verification.from_json(written["verification"]["before"]).notes == diagnosis.before.notes


def test_no_verdict_hangs_on_the_wording_of_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded module is checked in this process, so that every note of the run is reworded."""
    before = lora_doctor.check(Blind(), RECIPE)
    write = Note.__init__

    def reworded(self: Note, kind: Any, text: str, reason: str = "") -> None:
        write(self, kind, "other words", reason)

    monkeypatch.setattr(Note, "__init__", reworded)
    after = lora_doctor.check(Blind(), RECIPE)
    assert after.notes and {note.text for note in after.notes} == {"other words"}
    assert [note.kind for note in after.notes] == [note.kind for note in before.notes]
    assert after.verdict == before.verdict == "healthy", (before.findings, before.undetermined)
    assert [finding.rule for finding in after.findings] == [f.rule for f in before.findings]
    assert "note other words" in reports.render(after, "full")


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [("does-not-run", "no", WHY), ("not-proven", "unknown", "worded"), ("step", "yes", "")],
)
def test_a_cell_of_the_census_goes_by_the_kind(kind: Any, status: str, reason: str) -> None:
    """Words that sound like another kind make no difference."""
    ran = Verification("passed", "tiny", "cpu", "float32", (), notes=(Note(kind, "worded", WHY),))
    assert cell(ran) == {"status": status, "reason": reason}
    mislead = f"it is not proven: {WHY}"
    other = replace(ran, notes=(Note("step", mislead), *ran.notes))
    assert cell(other)["status"] == status


def test_what_a_library_raised_comes_with_the_evidence_error_that_it_led_to() -> None:
    """Rules that know a library's message read that message, not the sentence around it."""
    with Worker(preload=(), packages=("tests",)) as worker:
        outcome = worker.run("tests.test_notes:refuse", time_limit=120, import_cwd=True)
        error = evidence_error("the model", outcome, Limits().of_tiny(), {})
    assert str(error) == "in our own words"
    assert error.cause == Cause("KeyError", "'type'")
    with pytest.raises(EvidenceError) as here:
        refuse()
    assert here.value.cause == error.cause


def test_a_name_that_only_ends_like_ours_is_the_model_s() -> None:
    """`InputError` of a model's own code is no answer about the user's input."""
    with Worker(preload=(), packages=("tests",)) as worker:
        outcome = worker.run("tests.test_notes:raises_its_own", time_limit=120, import_cwd=True)
        error = evidence_error("the model", outcome, Limits().of_tiny(), {})
    assert error.cause == Cause("tests.test_notes.ImageInputError", "too bright")


class ImageInputError(Exception):
    """A model's own."""


def raises_its_own() -> None:
    raise ImageInputError("too bright")


def test_what_the_model_raised_without_adapters_is_data() -> None:
    class Broken(Blind):
        def forward(self, input_ids: Any = None, labels: Any = None) -> Any:
            return self.llm.embed_tokens(input_ids)

    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long)}
    seen = lora_doctor.check(Broken(), RECIPE, batches=[batch]).before
    assert seen is not None and seen.outcome == "undetermined"
    assert seen.obstacle == "base-model" and isinstance(seen.base_error, ErrorReport)
    assert seen.base_error.type == "AttributeError"
    assert "no attribute 'llm'" in seen.base_error.message
