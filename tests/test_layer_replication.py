"""``layer_replication``: layers of the real model, on a tiny one that has fewer of them."""

from __future__ import annotations

import dataclasses

import peft
import pytest

import lora_doctor
from lora_doctor.evidence.fewer_layers import fit
from lora_doctor.recipe.recipe import make_recipe
from lora_doctor.sandbox.worker import Worker

TARGETS = ["q_proj", "v_proj"]

if "layer_replication" not in {field.name for field in dataclasses.fields(peft.LoraConfig)}:
    pytest.skip("this PEFT repeats no layers", allow_module_level=True)


def test_layers_are_repeated_or_left_out_as_before() -> None:
    """A range of a model of 32 layers is none of one of two."""
    import torch

    model = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in "ab")}
    )
    for asked, there in (
        ([[0, 24], [16, 32]], [[0, 2], [1, 2]]),
        ([[0, 8], [24, 32]], [[0, 2]]),
    ):
        recipe, _ = fit(
            make_recipe({"layer_replication": asked}, where="test", origin="argument"), model
        )
        assert recipe.get("layer_replication") == there


def test_repeated_layers_train_and_cannot_be_merged(worker: Worker) -> None:
    """As plain PEFT does it: the run is sound, and merging adds two adapters to one weight."""
    recipe = {"target_modules": TARGETS, "layer_replication": [[0, 24], [16, 32]]}
    found = lora_doctor.check("arch:llama", recipe, worker=worker)
    assert [(one.severity, one.rule) for one in found.findings] == [("warning", "LD607")]
    assert found.before is not None
    failed = {check.name for check in found.before.checks if check.status == "failed"}
    assert failed == {"merge"}
