"""Proposals: what is open is filled by looking at the model, and PEFT agrees with it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lora_doctor.evidence.meta import gather
from lora_doctor.proposal.defaults import default_groups, role_cover
from lora_doctor.proposal.roles import jobs_of_name
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.injection import Unmatched
from lora_doctor.results.structure import Structure
from tests import cli
from tests.test_towers import source

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

LLAMA_NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def look(name: str, **values: Any) -> Structure:
    recipe = Recipe(values, dict.fromkeys(values, "option"))
    return Structure.from_json(gather(source(name), recipe.to_json()))


@pytest.mark.parametrize(
    ("name", "task_type"),
    [
        ("llama", "CAUSAL_LM"),
        ("t5", "SEQ_2_SEQ_LM"),
        ("bert", "SEQ_CLS"),
        ("llava", "CAUSAL_LM"),
        ("whisper", None),  # its forward has no input_ids, which every wrapper sends
        ("clip", None),
    ],
)
def test_proposed_recipe_is_accepted_and_stays_in_its_tower(
    name: str, task_type: str | None
) -> None:
    found = look(name)
    values = found.recipe["values"]
    assert values["task_type"] == task_type
    assert (values["r"], values["lora_alpha"]) == (16, 32)
    assert set(found.recipe["origins"].values()) == {"proposed"}
    assert found.injection.ok and found.injection.error is None
    wanted = {group.pattern for group in default_groups(found)}
    assert {group.pattern for group in found.groups if group.adapted} == wanted
    assert all(group.adapted in (0, group.count) for group in found.groups)
    assert found.injection.unmatched == ()


def test_names_that_another_tower_has_become_a_regular_expression() -> None:
    targets = look("llava").recipe["values"]["target_modules"]
    assert isinstance(targets, str) and re.compile(targets)
    assert "vision" not in targets
    assert look("llama").recipe["values"]["target_modules"] == LLAMA_NAMES


def test_what_peft_refuses_is_left_out() -> None:
    """Mamba's out_proj: asked of the installed PEFT, which refuses it in recent releases."""
    found = look("mamba")
    assert found.injection.ok
    if any("out_proj" in note.text for note in found.notes):
        assert "out_proj" not in found.recipe["values"]["target_modules"]


def test_fused_experts_are_proposed_where_peft_can_adapt_them() -> None:
    found = look("mixtral")
    fused = [group for group in found.groups if group.kind == "parameter"]
    values = found.recipe["values"]
    assert found.injection.ok
    if fused and "target_parameters" in values:
        assert values["lora_dropout"] == 0
        assert all(group.adapted == group.count for group in fused)
    if not fused:
        experts = [group for group in found.groups if group.role == "experts"]
        assert experts and all(group.adapted == group.count for group in experts)


def test_what_the_user_set_is_not_touched() -> None:
    found = look("phi3", target_modules=LLAMA_NAMES, lora_dropout=0.2)
    assert found.recipe["values"]["target_modules"] == LLAMA_NAMES
    assert found.recipe["values"]["lora_dropout"] == 0.2
    adapted = {group.leaf for group in found.groups if group.adapted}
    assert adapted == {"o_proj", "down_proj"}
    missing = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    assert set(found.injection.unmatched) == {Unmatched("target_modules", name) for name in missing}


def test_a_complete_recipe_gets_no_proposals() -> None:
    recipe = Recipe({"target_modules": ["q_proj"]}, {"target_modules": "file"}, complete=True)
    found = Structure.from_json(gather(source("llama"), recipe.to_json()))
    assert found.recipe["values"] == {"target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("bloom", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("falcon", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("gpt_neox", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("t5", {"q", "k", "v", "o", "wi", "wo"}),
        ("mt5", {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}),
        ("opt", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}),
        ("bert", {"query", "key", "value", "dense"}),
        ("mpt", {"Wqkv", "out_proj", "up_proj", "down_proj"}),
        ("llama", set(LLAMA_NAMES)),
    ],
)
def test_role_cover_of_llamas_names(name: str, expected: set[str]) -> None:
    assert set(role_cover(look(name), LLAMA_NAMES)) == expected


def test_role_cover_of_single_jobs() -> None:
    phi3, gpt2 = look("phi3"), look("gpt2")
    assert role_cover(phi3, ["q_proj", "v_proj"]) == ["qkv_proj"]
    assert role_cover(gpt2, ["query_key_value"]) == ["c_attn"]
    assert role_cover(gpt2, ["no_such_layer"]) == []


def test_jobs_of_name() -> None:
    assert jobs_of_name("model.layers.0.self_attn.q_proj") == {"query"}
    assert jobs_of_name("query_key_value") == {"query", "key", "value"}
    assert jobs_of_name("h.0.mlp.c_proj") == {"down"}
    assert jobs_of_name("attn.c_proj") == {"output"}


def test_proposal_leaves_out_what_peft_does_not_find_again_in_its_own_file() -> None:
    """PEFT 0.21 runs saved adapters through the renames of old checkpoints; some hit new names."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "LagunaConfig"):
        pytest.skip("this transformers has no Laguna")
    asked = look("laguna", target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
    lost = asked.injection.not_reloaded
    if not lost:
        pytest.skip("this PEFT finds all of its adapters again")
    assert all(".shared_experts." in pattern for pattern in lost)
    example = asked.injection.not_reloaded_example
    assert example is not None
    assert "shared_experts." in example.saved and "shared_experts.." in example.looked_for
    ours = look("laguna")
    assert ours.injection.not_reloaded == ()
    adapted = {group.pattern for group in ours.groups if group.adapted}
    assert not adapted & set(lost)
    assert {"model.layers.*.self_attn.q_proj", "model.layers.*.mlp.gate_proj"} <= adapted
    assert any("shared_experts" in note.text for note in ours.notes)


def needs(config: str) -> None:
    if not hasattr(pytest.importorskip("transformers"), config):
        pytest.skip(f"this transformers has no {config}")


@pytest.mark.parametrize(
    ("name", "config"),
    [("jetmoe", "JetMoeConfig"), ("granitemoehybrid", "GraniteMoeHybridConfig")],
)
def test_experts_that_only_their_class_calls_so_are_proposed_and_routers_are_not(
    name: str, config: str
) -> None:
    """JetMoE's recipe adapted the routers and left 77 % of the model, its experts, as they are."""
    needs(config)
    found = look(name)
    assert found.injection.ok, found.injection.error
    routers = [group for group in found.groups if re.search(r"router|gate$", group.pattern)]
    assert routers and not any(group.adapted for group in routers)
    experts = [group for group in found.groups if group.role == "experts"]
    assert experts
    if "target_parameters" in found.recipe["values"]:
        assert all(group.adapted == group.count for group in experts)
    dense = [group for group in found.groups if "shared_mlp" in group.pattern]
    assert all(group.adapted for group in dense if group.kind == "linear")


@pytest.mark.parametrize(
    ("name", "config", "gate"),
    [
        ("qwen2_moe", "Qwen2MoeConfig", "shared_expert_gate"),
        ("doge", "DogeConfig", "dt_proj"),
        ("gemma3n_text", "Gemma3nTextConfig", "modality_router"),
        ("gemma3n_text", "Gemma3nTextConfig", "correction_coefs"),
    ],
)
def test_a_layer_with_fewer_outputs_than_the_rank_is_no_target(
    name: str, config: str, gate: str
) -> None:
    """An adapter of rank 16 on a gate with one output is larger than the gate."""
    needs(config)
    found = look(name)
    assert found.injection.ok
    gates = [group for group in found.groups if group.leaf == gate]
    assert gates and not any(group.adapted for group in gates)
    assert any(group.adapted for group in found.groups if group.leaf == "q_proj")


def test_layers_that_lose_their_names_to_experts_are_told() -> None:
    """PEFT 0.21 takes `gate_proj` for GLM's fused experts; the shared expert gets no adapter."""
    needs("Glm4MoeConfig")
    found = look("glm4_moe")
    shared = [group for group in found.groups if ".shared_experts." in group.pattern]
    assert shared and found.injection.ok
    if not any(group.adapted for group in shared):
        assert any(shared[0].pattern in note.text for note in found.notes)


def test_weights_that_are_no_layers_are_told() -> None:
    """DBRX keeps its experts in flat matrices, 86 % of the model, and nothing said so."""
    needs("DbrxConfig")
    found = look("dbrx")
    assert any("ffn.experts.mlp" in note.text and "86%" in note.text for note in found.notes)


def test_both_stacks_of_an_encoder_and_decoder_are_proposed() -> None:
    """T5Gemma 2's decoder was taken for the projector of its vision tower."""
    needs("T5Gemma2Config")
    recipe = Recipe({"model_class": "AutoModelForSeq2SeqLM"}, {"model_class": "option"})
    found = Structure.from_json(gather(source("t5gemma2"), recipe.to_json()))
    adapted = {group.pattern for group in found.groups if group.adapted}
    assert "model.decoder.layers.*.self_attn.q_proj" in adapted
    assert "model.encoder.text_model.layers.*.self_attn.q_proj" in adapted
    assert not any("vision" in pattern or "projector" in pattern for pattern in adapted)


def test_a_second_stack_of_the_same_weights_is_not_proposed_too() -> None:
    """DiffusionGemma's decoder has its encoder's weights: both cannot be merged."""
    needs("DiffusionGemmaConfig")
    recipe = Recipe({"model_class": "AutoModelForImageTextToText"}, {"model_class": "option"})
    found = Structure.from_json(gather(source("diffusion_gemma"), recipe.to_json()))
    wanted = {group.pattern for group in default_groups(found)}
    assert "model.encoder.language_model.layers.*.self_attn.q_proj" in wanted
    assert not any(pattern.startswith("model.decoder.") for pattern in wanted)


def test_a_healthy_recipe_says_what_it_passes_by() -> None:
    """Attention alone of DBRX trains: 12 of 12 checks, and the experts stay as they are."""
    needs("DbrxConfig")
    result = cli.lora_doctor("check", "arch:dbrx", "--class", "AutoModelForCausalLM")
    assert result.code == 0, result
    assert "no adapters on transformer.blocks.*.ffn.experts.mlp" in " ".join(result.out.split())


def test_a_dtype_that_the_model_does_not_run_in_is_not_called_healthy() -> None:
    """What was not run in bfloat16 is not proven in it, whatever it does in float32."""
    needs("XLNetConfig")
    result = cli.lora_doctor("check", "arch:xlnet", "--dtype", "bfloat16", "--target-modules",
                             "layer_1", "--class", "AutoModelForCausalLM")  # fmt: skip
    assert result.code == 2, result
    assert "bfloat16 is not proven" in " ".join(result.out.split())
