"""Meta evidence: what the installed PEFT does to the full-size class, and at what cost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.evidence.meta import describe_module, gather
from lora_doctor.model import injection
from lora_doctor.model.loading import Loader
from lora_doctor.model.meta_copy import meta_copy
from lora_doctor.model.module_path import pattern_of
from lora_doctor.model.wrapper import wrapper_call
from lora_doctor.recipe.normal_forms import TASK_TYPES
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.injection import Converted, Unmatched
from lora_doctor.results.structure import Structure
from lora_doctor.sandbox.worker import Worker
from tests.test_default_recipe import LLAMA_NAMES, look
from tests.test_towers import build, source

pytest.importorskip("torch")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def recipe_of(**values: Any) -> Recipe:
    return Recipe(values, dict.fromkeys(values, "option"))


def tiny_llama(**options: Any) -> Any:
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100, **options,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    "name",
    [
        "llama", "phi3", "gpt2", "gemma2", "llava", "qwen2_vl", "clip", "whisper", "instructblip",
        "mixtral", "qwen3_moe", "gpt_oss", "t5", "bert", "albert", "vit", "gpt_neox",
    ],
)  # fmt: skip
def test_two_layers_tell_the_same_as_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thin and full injection agree, also where the config tells layers apart by number."""
    model = build(name)
    leaves = Counter(
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear")
    )
    names = [leaf for leaf, _ in leaves.most_common(3)]
    recipes = [
        recipe_of(target_modules=names, lora_dropout=0),
        recipe_of(target_modules=names[:1], layers_to_transform=[1], lora_dropout=0),
        recipe_of(target_modules=names[:1], rank_pattern={rf".*\.1\..*{names[0]}": 2}),
        recipe_of(target_modules=[*names[:1], f"0.self_attn.{names[-1]}"]),
        recipe_of(target_modules=rf".*\.\d*1\..*\.{names[0]}"),
    ]
    for recipe in recipes:
        thin = injection.inject(model, recipe)
        with monkeypatch.context() as patch:
            patch.setattr(injection, "meaning", lambda config: None)
            full = injection.inject(model, recipe)
        assert by_pattern(thin) == by_pattern(full)
        assert replace(thin.result, error=None) == replace(full.result, error=None)
        assert (thin.result.error is None) == (full.result.error is None)


def by_pattern(injected: injection.Injected) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path, times in injected.adapted.items():
        counts[pattern_of(path)] += times
    return counts


def test_405_billion_parameters(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16384,
        "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8,
        "intermediate_size": 53248, "vocab_size": 128256,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    place = {
        "kind": "folder", "name": str(tmp_path), "folder": str(tmp_path),
        "trust_remote_code": False, "revision": None,
    }  # fmt: skip
    found = Structure.from_json(gather(place, Recipe().to_json()))
    assert found.total_parameters == 405_853_388_800
    assert {group.adapted for group in found.groups if group.leaf in LLAMA_NAMES} == {126}
    # r * (in + out) of each of the seven layers, 126 times
    ins_outs = 4 * 16384 + 2 * (16384 + 1024) + 3 * (16384 + 53248)
    assert found.injection.adapter_parameters == 16 * 126 * ins_outs


def test_json_round_trip() -> None:
    found = look("llama")
    assert Structure.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_entries_that_name_nothing() -> None:
    values: dict[str, Any] = {
        "target_modules": ["q_proj", "nothing"],
        "modules_to_save": ["lm_head", "nobody"],
    }
    expected = {
        Unmatched("target_modules", "nothing"),
        Unmatched("modules_to_save", "nobody"),
    }
    if "target_parameters" in {item.name for item in fields(peft.LoraConfig)}:
        values["target_parameters"] = ["experts.void"]
        expected.add(Unmatched("target_parameters", "experts.void"))
    found = look("llama", **values)
    assert found.injection.ok
    assert set(found.injection.unmatched) == expected


def test_the_word_for_all_linear_layers_is_a_name_in_a_list() -> None:
    """PEFT reads it as the word only where it stands alone as a string."""
    found = look("llama", target_modules=["all-linear", "lm_head"])
    assert found.injection.unmatched == (Unmatched("target_modules", "all-linear"),)
    assert {group.leaf for group in found.groups if group.adapted} == {"lm_head"}


def test_conversion_is_peft_s_own() -> None:
    """Mixtral's w1, w2, w3 are linear layers, or names that PEFT turns into parameters."""
    found = look("mixtral", target_modules=["q_proj", "w1", "w2", "w3"])
    fused = [group for group in found.groups if group.kind == "parameter"]
    assert found.injection.ok and not found.injection.unmatched
    if fused:
        assert found.injection.converted == (
            Converted("w1", ("gate_up_proj",)), Converted("w2", ("down_proj",)),
            Converted("w3", ("gate_up_proj",)),
        )  # fmt: skip
        refused = look("mixtral", target_modules=["q_proj", "w1", "w2", "w3"], lora_dropout=0.1)
        assert refused.injection.error is not None
        assert "lora_dropout" in refused.injection.error.message
        assert refused.injection.converted == found.injection.converted


def test_no_match_is_an_error_with_its_place() -> None:
    found = look("llama", target_modules=["query"])
    error = found.injection.error
    assert not found.injection.ok and error is not None
    assert "not found in the base model" in error.message
    assert "peft" in error.where and "Traceback" in error.traceback
    assert found.injection.unmatched == (Unmatched("target_modules", "query"),)


def test_headless_class() -> None:
    found = look("llama", model_class="AutoModel", task_type="CAUSAL_LM")
    assert found.model_class == "LlamaModel" and not found.has_head
    assert "LlamaForCausalLM" in {head.class_name for head in found.head_classes}
    if not found.has_prepare_inputs:
        assert found.injection.error is not None
        assert "prepare_inputs_for_generation" in found.injection.error.message


@pytest.mark.parametrize("task_type", [*TASK_TYPES, None])
def test_wrapper_is_asked(task_type: str | None) -> None:
    sends, nothing, keeps, needs = wrapper_call(task_type)
    assert {"input_ids", "attention_mask"} <= set(sends)
    heads = {"SEQ_CLS": {"classifier", "score"}, "TOKEN_CLS": {"classifier", "score"},
             "QUESTION_ANS": {"qa_outputs"}}  # fmt: skip
    assert set(keeps) == heads.get(task_type or "", set())
    assert set(nothing) <= set(sends)
    assert ("inputs_embeds" in nothing) == (task_type is not None)
    assert ("decoder_input_ids" in sends) == (task_type == "SEQ_2_SEQ_LM")
    generates = task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM")
    assert ("prepare_inputs_for_generation" in needs) == generates


def test_a_loaded_module_is_only_read() -> None:
    import torch

    model = tiny_llama(tie_word_embeddings=True)
    model.model.norm.weight.requires_grad_(False)
    model.model.layers[0].register_forward_hook(lambda *args: None)

    def state() -> Any:
        weights = {
            name: (id(item), item.requires_grad, item.device, item.data_ptr())
            for name, item in model.named_parameters()
        }
        return weights, [(name, id(module)) for name, module in model.named_modules()]

    before = state()
    found = describe_module(model)
    assert state() == before
    assert found.injection.ok and found.native_dtype == "float32"
    assert found.tied_weights == ("model.embed_tokens.weight = lm_head.weight",)
    thinned = meta_copy(model).model
    assert {item.device for item in thinned.parameters()} == {torch.device("meta")}
    assert thinned.lm_head.weight is thinned.model.embed_tokens.weight
    assert not thinned.model.norm.weight.requires_grad
    assert len(thinned.model.layers[0]._forward_hooks) == 1


def test_a_wrapped_model_is_described_as_it_is() -> None:
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "nix"], modules_to_save=["lm_head"]
    )
    model = peft.get_peft_model(tiny_llama(), config)
    found = describe_module(model)
    assert found.model_class == "LlamaForCausalLM"
    assert found.injection.wrapper == "PeftModelForCausalLM"
    assert found.injection.unmatched == (Unmatched("target_modules", "nix"),)
    assert [group.leaf for group in found.groups if group.adapted] == ["q_proj"]
    trainable, total = model.get_nb_trainable_parameters()
    assert found.injection.trainable_parameters == trainable
    assert found.injection.total_parameters == total
    assert found.injection.trainable_other == ()
    assert {tower.path: tower.kind for tower in found.towers} == {
        "model": "language", "lm_head": "head"
    }  # fmt: skip


def test_adapters_that_a_model_brings_itself() -> None:
    own = peft.LoraConfig(target_modules=["q_proj"], r=4)
    model = peft.inject_adapter_in_model(own, tiny_llama(), "vision")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    found = describe_module(model, recipe_of(target_modules=["q_proj", "k_proj"]))
    assert found.built_in_adapters == ("vision",)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "k_proj"], r=16))
    really = sum(item.numel() for item in wrapped.parameters() if item.requires_grad)
    assert found.injection.trainable_parameters == really
    others = [
        name
        for name, item in wrapped.named_parameters()
        if item.requires_grad and ".default." not in name
    ]
    assert bool(found.injection.trainable_other) == bool(others)


def test_what_cannot_be_built_says_so() -> None:
    with pytest.raises(InputError, match="no such architecture"):
        gather({"kind": "arch", "name": "nonsense", "folder": None}, Recipe().to_json())


def test_a_config_that_the_class_refuses(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": -8, "n_head": 2, "architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    place = {
        "kind": "folder", "name": str(tmp_path), "folder": str(tmp_path),
        "trust_remote_code": False, "revision": None,
    }  # fmt: skip
    with pytest.raises(EvidenceError) as caught:
        gather(place, Recipe().to_json())
    assert "\n" not in str(caught.value)


def test_patches_are_in_force(worker: Worker) -> None:
    """What the verification will run with is what the meta evidence sees; in a child, so that the
    patch ends with it."""
    recipe = recipe_of(model_class="AutoModel", task_type="CAUSAL_LM")
    patch = {"name": "peft_without_generation", "parameters": {}}
    from lora_doctor.prescription.patches import load_patch

    if load_patch(patch["name"]).why_not():
        pytest.skip("the installed PEFT needs no such patch")
    outcome = worker.run(
        "lora_doctor.evidence.meta:gather",
        {"source": source("llama"), "recipe": recipe.to_json(), "patches": [patch]},
        time_limit=120,
    )
    assert outcome.failure is None, outcome.failure
    assert Structure.from_json(outcome.value).injection.ok


def test_loader_classes_are_the_heads() -> None:
    loader = Loader(source("bert"), Recipe())
    assert {head.task_type for head in loader.candidates} >= {"SEQ_CLS", "TOKEN_CLS"}


def test_a_checkpoint_that_generates_is_loaded_as_its_own_class(tmp_path: Path) -> None:
    """Whisper with the wrong task type is still Whisper: transformers' class for CAUSAL_LM is its
    decoder alone, which nobody who has this checkpoint trains."""
    from tests.multimodal_models import write_folder

    name = write_folder("whisper", tmp_path)
    folder = {
        "kind": "folder", "name": str(tmp_path), "folder": str(tmp_path),
        "trust_remote_code": False,
    }  # fmt: skip

    def loaded(**values: Any) -> str:
        cls = Loader(folder, recipe_of(**values)).model_class
        assert cls is not None
        return cls.__name__

    for task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM", None):
        assert loaded(task_type=task_type) == name
    asked = loaded(task_type="CAUSAL_LM", model_class="AutoModelForCausalLM")
    assert asked == "WhisperForCausalLM"
