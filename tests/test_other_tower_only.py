"""A name of the language model's, as other models have it, that hits the vision tower only."""

from __future__ import annotations

import pytest

import lora_doctor
from lora_doctor.rule_api import known_architectures


def test_an_mlp_that_only_the_vision_tower_calls_so_is_told() -> None:
    if "glm4v" not in (known_architectures() or ()):
        pytest.skip("this transformers has no GLM-4V")
    recipe = {"target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj"]}
    diagnosis = lora_doctor.check("arch:glm4v", recipe, depth="meta", select=("LD202",))
    (finding,) = diagnosis.findings
    assert (finding.rule, finding.severity) == ("LD202", "info")
    assert "gate_up_proj" in finding.message
