"""Settings of a framework that freeze weights by name, after PEFT has wrapped the model."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

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


AXOLOTL = (
    "lora_r: 8\nlora_target_modules: [q_proj, v_proj]\nsequence_len: 512\nbf16: true\n"
    "datasets: [{path: data.jsonl, type: alpaca}]\n"
)
LLAVA = "base_model: arch:llava\nadapter: lora\n" + AXOLOTL
MIXTRAL = "base_model: arch:mixtral\nadapter: qlora\nload_in_4bit: true\n" + AXOLOTL
LLAMAFACTORY = (
    "model_name_or_path: arch:llava\nstage: sft\nfinetuning_type: lora\nlora_target: all\n"
    "dataset: identity\ntemplate: llava\ncutoff_len: 512\noutput_dir: out\nbf16: true\n"
)


@pytest.mark.parametrize(
    ("text", "without", "own", "code"),
    [
        (LLAVA, "", "freeze_mm_modules: true", "LD203"),
        (MIXTRAL, "", "quantize_moe_experts: true", "LD313"),
        (LLAMAFACTORY, "freeze_vision_tower: false", "", "LD203"),
    ],
    ids=["axolotl-llava", "axolotl-mixtral", "llamafactory-llava"],
)
def test_what_the_framework_does_itself_is_no_mistake(
    text: str, without: str, own: str, code: str, tmp_path: Path, worker: Worker
) -> None:
    """axolotl can freeze the vision tower that the targets reach, and quantize fused experts, which
    transformers leaves as they are; LLaMA-Factory puts no adapter on a vision tower unasked."""
    path = tmp_path / "set_up.yml"
    codes = []
    for line in (without, own):
        path.write_text(f"{text}{line}\n", encoding="utf-8")
        found = lora_doctor.check(str(path), depth="meta", worker=worker).findings
        codes.append({one.rule for one in found})
    assert code not in codes[1], "silent"
    if Version(metadata.version("transformers")) >= Version("5"):  # older ones have no all-linear
        assert code in codes[0]
