"""Adapters that learn nothing: the finding says which of several causes was seen, and where."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import lora_doctor  # noqa: E402
from lora_doctor.contract.adapters import AdapterLayer, without_tokens  # noqa: E402
from lora_doctor.results.structure import ModuleGroup  # noqa: E402
from lora_doctor.sandbox.worker import Worker  # noqa: E402
from lora_doctor.static.installed.environment import known_architectures  # noqa: E402
from tests import models  # noqa: E402

NAMES = ["learns", "never_run", "read_only", "silent", "dropped", "alone"]


def causes(diagnosis: Any) -> dict[str, str]:
    """The last part of the path of each finding's place, to its message."""
    return {
        finding.location.path.rpartition(".")[2]: finding.message
        for finding in diagnosis.findings
        if finding.rule == "LD206"
    }


def test_each_cause_is_told_from_the_others(worker: Worker) -> None:
    """What is left out for a wrong reason comes back with the next batch."""
    model = f"{models.__name__}:layers_that_learn_nothing"
    found = causes(lora_doctor.check(model, {"target_modules": NAMES}, worker=worker))
    assert set(found) == set(NAMES) - {"learns"}
    assert "no forward runs" in found["never_run"]
    assert "weight is read" in found["read_only"] and "models.py:" in found["read_only"]
    assert "gradients disabled" in found["silent"] and "models.py:" in found["silent"]
    assert "no gradient flows back" in found["dropped"]
    assert "exactly zero" in found["alone"]


def test_only_what_no_batch_can_reach_is_left_out_unasked(worker: Worker) -> None:
    """Another batch may run a layer that these did not; nothing brings a dropped output back."""
    model = f"{models.__name__}:layers_that_learn_nothing"
    recipe = {"target_modules": NAMES}
    safe = lora_doctor.fix(model, recipe, worker=worker)
    assert safe.fixed_recipe is not None
    assert safe.fixed_recipe.get("target_modules") == ["learns", "never_run", "alone"]
    both = lora_doctor.fix(model, recipe, unsafe_fixes=True, worker=worker)
    assert both.fixed_recipe is not None and both.after is not None
    assert both.fixed_recipe.get("target_modules") == ["learns"]
    assert both.after.outcome == "passed"


@pytest.mark.slow
def test_the_last_layer_is_left_out_at_full_size_and_nothing_else(worker: Worker) -> None:
    """LLaVA takes the features before the last of 24 vision layers; the tiny model has two."""
    recipe = {"target_modules": r".*vision_tower.*\.(q_proj|v_proj)"}
    fixed = lora_doctor.fix("arch:llava", recipe, worker=worker)
    assert fixed.after is not None and fixed.after.outcome == "passed"
    structure = lora_doctor.check("arch:llava", fixed.fixed_recipe, worker=worker).structure
    assert structure is not None
    adapted = {group.leaf: (group.adapted, group.count) for group in vision(structure.groups)}
    assert adapted == {"q_proj": (23, 24), "v_proj": (23, 24)}


def vision(groups: tuple[ModuleGroup, ...]) -> list[ModuleGroup]:
    return [g for g in groups if "vision_tower" in g.pattern and g.leaf in ("q_proj", "v_proj")]


def test_a_first_layer_that_learns_nothing_is_named_alone(worker: Worker) -> None:
    """Its siblings learn: a finding about all of them would take the adapters off those, too."""
    model = f"{models.__name__}:queries_that_begin_as_zeros"
    recipe = {"target_modules": ["among_queries", "to_image"]}
    diagnosis = lora_doctor.check(model, recipe, worker=worker)
    (finding,) = [one for one in diagnosis.findings if one.rule == "LD206"]
    assert "layers.0.among_queries learn nothing" in finding.message
    fixed = lora_doctor.fix(model, recipe, unsafe_fixes=True, worker=worker)
    assert fixed.after is not None and fixed.after.outcome == "passed"
    learning = {group.pattern: group.count for group in fixed.after.adapters}
    assert learning == {"layers.*.among_queries": 2, "layers.*.to_image": 3}


@pytest.mark.slow
def test_layers_of_a_stack_are_not_taken_for_its_last_ones(worker: Worker) -> None:
    """All cross-attention is idle when a decoder is used alone; its other layers all learn."""
    recipe = {"target_modules": ["q_proj", "v_proj"], "model_class": "AutoModelForCausalLM"}
    fixed = lora_doctor.fix("arch:bart", recipe, unsafe_fixes=True, worker=worker)
    assert fixed.after is not None and fixed.after.outcome == "passed"
    assert {group.pattern for group in fixed.after.adapters} == {
        "model.decoder.layers.*.self_attn.q_proj",
        "model.decoder.layers.*.self_attn.v_proj",
    }


@pytest.mark.parametrize(
    ("path", "twin", "excused"),
    [
        ("layers.0.experts.3.fc", "layers.0.experts.1.fc", True),
        ("layers.0.experts.expert_3.fc", "layers.0.experts.expert_1.fc", True),
        ("layers.0.mlp.linear_2", "layers.0.mlp.linear_1", False),
        ("layers.1.fc", "layers.0.fc", False),
    ],
)
def test_an_expert_without_a_token_is_excused_and_a_dead_layer_is_not(
    path: str, twin: str, excused: bool
) -> None:
    """NLLB and Switch call their experts `expert_0`; `linear_2` is not called by a router."""
    module = torch.nn.Linear(2, 2)
    idle, busy = AdapterLayer(path, module, []), AdapterLayer(twin, module, [], calls=3)
    assert (idle in without_tokens([idle, busy])) is excused


def test_leaving_out_what_learns_nothing_keeps_what_learns(worker: Worker) -> None:
    """`all-linear` adapts experts as parameters in PEFT 0.21; a list of layers would drop them."""
    if "deepseek_v32" not in (known_architectures() or ()):
        pytest.skip("this transformers has no DeepSeek-V3.2")
    recipe = {"target_modules": "all-linear"}
    fixed = lora_doctor.fix("arch:deepseek_v32", recipe, worker=worker)
    assert "LD206" in [finding.rule for finding in fixed.findings]
    assert fixed.before is not None and fixed.after is not None
    learning = {group.pattern for group in fixed.before.adapters if group.with_gradient}
    assert fixed.after.outcome == "passed"
    assert {group.pattern for group in fixed.after.adapters} == learning


def test_experts_with_a_word_before_their_number_are_one_group() -> None:
    """As the structure counts them: what learns is compared with it pattern by pattern."""
    from lora_doctor.contract.adapters import AdapterLayer
    from lora_doctor.model.module_path import pattern_of

    layers = [
        AdapterLayer(f"decoder.layers.1.ffn.experts.{name}.fc1", None, [])
        for name in ("expert_0", "expert_11")
    ]
    assert {layer.pattern for layer in layers} == {"decoder.layers.*.ffn.experts.expert_*.fc1"}
    assert pattern_of("experts_3.w.0") == "experts_*.w.*" and pattern_of("fc_1") == "fc_1"
