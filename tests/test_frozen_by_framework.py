"""Settings of a framework that freeze weights by name, after PEFT has wrapped the model."""

from __future__ import annotations

from pathlib import Path

import pytest

import lora_doctor
from lora_doctor.recipe.files.formats.axolotl import FRAMEWORK
from lora_doctor.sandbox.worker import Worker

NAME = "base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight"


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("lora_", False),  # matched from the beginning of the name
        ("base_model", True),
        ("model.layers.3", False),
        (".*lora_A", False),  # a dot is a dot, unless a plus follows
        (".+lora_A", True),
        ("base_model.model.+[0-9].self_attn", True),
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight$[:8]", True),
        ("^lm_head.weight$[:32000]", False),
        ("(", True),  # no expression: axolotl raises, and nothing is known of what it freezes
    ],
)
def test_a_weight_that_no_pattern_names_is_frozen(pattern: str, kept: bool) -> None:
    """As ``LayerNamePattern`` of axolotl 0.19 answers, asked there."""
    entries = {"adapter": "lora", "unfrozen_parameters": [pattern]}
    freezes = FRAMEWORK.freezes(entries).get("unfrozen_parameters", lambda name: False)
    assert freezes(NAME) is not kept


def test_without_an_adapter_the_patterns_are_the_way_to_train() -> None:
    assert not FRAMEWORK.freezes({"unfrozen_parameters": ["^lm_head.weight$"]})


def test_a_tower_that_the_framework_freezes_is_not_trained_by_mistake(tmp_path: Path) -> None:
    """``lora_target_modules`` reach the vision tower of LLaVA, and ``freeze_mm_modules`` keeps
    these adapters at zero."""
    path = tmp_path / "set_up.yml"
    text = (
        "base_model: arch:llava\nadapter: lora\nlora_r: 8\nlora_target_modules: [q_proj, v_proj]\n"
        "datasets: [{path: data.jsonl, type: alpaca}]\nsequence_len: 512\n"
    )
    codes = []
    with Worker(threads=1) as worker:
        for extra in ("", "freeze_mm_modules: true\n"):
            path.write_text(text + extra, encoding="utf-8")
            found = lora_doctor.check(str(path), depth="meta", worker=worker).findings
            codes.append({one.rule for one in found})
    assert "LD203" in codes[0] - codes[1]
