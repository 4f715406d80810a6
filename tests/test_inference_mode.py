"""A recipe that says `inference_mode: true`, as every saved adapter's config does: what PEFT leaves
trainable, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker
from tests import saved_adapters as made

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

TARGETS = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
RECIPES: dict[str, dict[str, Any]] = {
    "LoraConfig": {"peft_type": "LORA", **TARGETS, "modules_to_save": ["lm_head"]},
    "IA3Config": {
        "peft_type": "IA3", "task_type": "CAUSAL_LM", "target_modules": ["k_proj"],
        "feedforward_modules": [],
    },
    "LoHaConfig": {"peft_type": "LOHA", **TARGETS},
    "PromptTuningConfig": {
        "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4,
    },
}  # fmt: skip


def trainable_adapters(name: str, values: dict[str, Any]) -> list[str]:
    """By plain PEFT; a copy of a whole module is no adapter."""
    own = {key: value for key, value in values.items() if key != "peft_type"}
    config = getattr(peft, name)(inference_mode=True, **own)
    wrapped = peft.get_peft_model(made.llama(), config)
    named = wrapped.named_parameters()
    return [n for n, value in named if value.requires_grad and "modules_to_save" not in n]


@pytest.fixture(scope="module")
def base() -> str:
    folder = made.new_folder("base")
    made.llama().save_pretrained(str(folder))
    return str(folder)


@pytest.mark.parametrize("name", RECIPES)
def test_what_peft_freezes_is_found(name: str, base: str, worker: Worker) -> None:
    """PEFT leaves a prompt trainable whatever the config says."""
    values = RECIPES[name]
    frozen = not trainable_adapters(name, values)
    recipe = {**values, "inference_mode": True}
    found = lora_doctor.check(base, recipe, depth="meta", worker=worker).findings
    assert [finding.rule for finding in found] == (["LD502"] if frozen else [])
    assert frozen == (name != "PromptTuningConfig")


def test_the_fix_trains(base: str, worker: Worker) -> None:
    recipe = {**RECIPES["LoraConfig"], "inference_mode": True}
    diagnosis = lora_doctor.fix(base, recipe, worker=worker)
    (finding,) = diagnosis.findings
    assert finding.rule == "LD502" and finding.fixes[0].safety == "safe"
    assert diagnosis.remaining == () and diagnosis.after is not None
    assert diagnosis.after.outcome == "passed" and diagnosis.fixed_recipe is not None
    assert diagnosis.fixed_recipe.get("inference_mode") is False


def test_a_saved_adapter_is_loaded_and_its_config_is_no_recipe(worker: Worker) -> None:
    base, options = made.lora()
    config = Path(options["adapter"]) / "adapter_config.json"
    (finding,) = lora_doctor.check(base, config, depth="meta", worker=worker).findings
    assert finding.rule == "LD502"
    assert {fix.safety for fix in finding.fixes} == {"manual"}
    assert "is_trainable=True" in finding.fixes[-1].title
    assert lora_doctor.check(base, depth="meta", worker=worker, **options).findings == ()
