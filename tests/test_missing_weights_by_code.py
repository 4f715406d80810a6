"""Weights that a checkpoint lacks, where the user's own code loads it: a factory, which can be
called twice, and a model in memory."""

from __future__ import annotations

from typing import Any

import pytest

import lora_doctor
from lora_doctor.results.finding import Finding
from lora_doctor.sandbox.worker import Worker
from tests import checkpoint_factories as factories

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

pytestmark = pytest.mark.slow
RECIPE = {"target_modules": ["q_proj", "v_proj"], "task_type": None}


def found(diagnosis: lora_doctor.Diagnosis) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.rule == "LD606"]


def others(name: str) -> list[str]:
    """Parameters with other values when the factory is called again: the truth."""
    make = getattr(factories, name)
    first, second = (dict(make().named_parameters()) for _ in range(2))
    return [key for key, value in first.items() if not torch.equal(value, second[key])]


@pytest.mark.parametrize(
    ("name", "random"),
    [
        ("classifier", ["score.weight"]),
        ("detector", ["head.weight", "head.bias"]),
        ("seeded_classifier", []),
        ("with_a_head_of_its_own", []),
        ("language_model", []),
    ],
)
def test_what_is_other_after_another_call_is_found(
    name: str, random: list[str], worker: Worker
) -> None:
    assert others(name) == random
    factory = f"tests.checkpoint_factories:{name}"
    diagnosis = lora_doctor.check(factory, RECIPE, depth="meta", worker=worker)
    findings = found(diagnosis)
    assert len(findings) == bool(random)
    if random:
        head = random[0].partition(".")[0]
        assert f"`{head}`" in findings[0].message or f" {head}:" in findings[0].message
        assert "called twice" in findings[0].proof.detail


def test_the_round_trip_has_another_head(worker: Worker) -> None:
    """Saved and loaded onto what the factory would make next, the logits are others; saved with
    the adapters, they are the same."""
    factory = "tests.checkpoint_factories:classifier"
    (finding,) = found(lora_doctor.check(factory, RECIPE, worker=worker))
    assert finding.severity == "error" and finding.proof.kind == "executed"
    saved = {**RECIPE, "task_type": "SEQ_CLS"}
    diagnosis = lora_doctor.check(factory, saved, worker=worker)
    assert diagnosis.verdict == "healthy", diagnosis


def test_a_checkpoint_that_is_named_and_not_loaded_says_nothing(worker: Worker) -> None:
    factory = "tests.checkpoint_factories:from_its_config"
    diagnosis = lora_doctor.check(factory, RECIPE, depth="meta", worker=worker)
    (skipped,) = [item for item in diagnosis.skipped if item.rule == "LD606"]
    assert "does not load the checkpoint" in skipped.reason and not found(diagnosis)


def test_of_a_model_in_memory_it_is_a_warning(worker: Worker) -> None:
    model: Any = factories.classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (finding,) = found(lora_doctor.check(model, RECIPE, depth="meta", worker=worker))
    assert finding.severity == "warning" and "from elsewhere" in finding.message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    saved = {**RECIPE, "task_type": "SEQ_CLS"}
    assert not found(lora_doctor.check(model, saved, depth="meta", worker=worker))
    whole = factories.language_model()
    assert not found(lora_doctor.check(whole, RECIPE, depth="meta", worker=worker))
