"""Towers are found by what they are, on full-size classes of the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from lora_doctor.model.loading import Loader
from lora_doctor.model.module_path import pattern_of
from lora_doctor.model.modules import assign_roles, collect, group
from lora_doctor.model.towers import find_towers
from lora_doctor.recipe.recipe import Recipe

pytest.importorskip("torch")
pytest.importorskip("transformers")


def source(name: str) -> dict[str, Any]:
    """An ``arch:`` source, or a skip where this transformers does not know it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    return {"kind": "arch", "name": name, "trust_remote_code": False, "folder": None}


def build(name: str) -> Any:
    """The default model, or a skip where the release's own defaults contradict themselves."""
    loader = Loader(source(name), Recipe())
    try:
        return loader.build("meta")
    except Exception as error:  # noqa: BLE001 - its classes raise anything
        pytest.skip(f"transformers cannot build its own {name}: {error}")


@pytest.mark.parametrize("name", ["mllama", "qwen3_vl"])
def test_a_default_that_its_own_class_refuses_is_set_right(name: str) -> None:
    """transformers 4 leaves their rotary settings empty; what was set for them is told."""
    loader = Loader(source(name), Recipe())
    assert sum(parameter.numel() for parameter in loader.build("meta").parameters()) > 5e9
    assert all("rope_scaling" in change for change in loader.repairs)


def kinds(model: Any) -> dict[str, str]:
    return {tower.path: tower.kind for tower in find_towers(model, collect(model)).towers}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", ["head", "language"]),
        ("gpt2", ["head", "language"]),
        ("t5", ["head", "language"]),
        ("bert", ["head", "language"]),
        ("vit", ["head", "vision"]),
        ("llava", ["head", "language", "projector", "vision"]),
        ("llava_next", ["head", "language", "projector", "vision"]),
        ("idefics3", ["head", "language", "projector", "vision"]),
        ("mllama", ["head", "language", "projector", "vision"]),
        ("paligemma", ["head", "language", "projector", "vision"]),
        ("gemma3", ["head", "language", "projector", "vision"]),
        ("smolvlm", ["head", "language", "projector", "vision"]),
        ("qwen2_vl", ["head", "language", "projector", "vision"]),
        ("instructblip", ["head", "language", "projector", "projector", "vision"]),
        ("blip-2", ["head", "language", "projector", "projector", "vision"]),
        ("clip", ["language", "projector", "projector", "vision"]),
        ("whisper", ["audio", "head", "language"]),
        ("qwen2_audio", ["audio", "head", "language", "projector"]),
        ("phi4_multimodal", ["audio", "head", "language", "projector", "projector", "projector",
                             "vision"]),
        ("git", ["head", "language", "projector", "vision"]),
    ],
)  # fmt: skip
def test_towers_of_known_designs(name: str, expected: list[str]) -> None:
    model = build(name)
    if name in ("gemma3", "qwen2_vl"):
        # The text-only class, or sizes whose defaults do not fit together, on older releases.
        found = set(kinds(model).values())
        assert {"head", "language"} <= found
        return
    assert sorted(kinds(model).values()) == expected


def test_stacks_that_take_tokens_and_patches_are_language() -> None:
    """From 5.0 on UDOP's stacks hold a patch convolution each, and the token embedding none."""
    found = kinds(build("udop"))
    assert set(found.values()) - {"head"} == {"language", "vision"}
    assert not {path for path, kind in found.items() if kind == "vision"} - {"patch_embed"}


def test_equal_widths_do_not_turn_layers_into_a_projector() -> None:
    """A stack beside the token embedding is the tower's body, whatever widths it shares."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.second = nn.Linear(16, 16)
            self.norm = nn.LayerNorm(16)

    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 16, 4, 4)
            self.blocks = nn.ModuleList(Block() for _ in range(3))

        def forward(self, pixel_values: Any) -> Any:
            raise NotImplementedError

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(2000, 16)
            self.layers = nn.ModuleList(Block() for _ in range(3))
            self.eyes = Vision()
            self.bridge = nn.Linear(16, 16)

        def forward(self, input_ids: Any, pixel_values: Any) -> Any:
            raise NotImplementedError

    with torch.device("meta"):
        found = kinds(Mine())
    assert found == {"": "language", "eyes": "vision", "bridge": "projector"}


def test_a_composite_of_the_users_own() -> None:
    """Known models inside an unknown one, without a config and without getters on top."""
    import torch
    import transformers
    from torch import nn

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            speech = transformers.WhisperConfig(
                d_model=32, encoder_layers=2, encoder_attention_heads=2,
                decoder_layers=2, decoder_attention_heads=2,
            )  # fmt: skip
            text = transformers.LlamaConfig(
                hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                num_attention_heads=4, vocab_size=100,
            )  # fmt: skip
            self.speech = transformers.WhisperModel(speech).encoder
            self.norm = nn.LayerNorm(32)
            self.connect = nn.Linear(32, 64)
            self.llm = transformers.AutoModelForCausalLM.from_config(text)

        def forward(self, input_features: Any, input_ids: Any) -> Any:
            raise NotImplementedError

    with torch.device("meta"):
        model = Mine()
    anatomy = find_towers(model, collect(model))
    assert {tower.path: tower.kind for tower in anatomy.towers} == {
        "speech": "audio",
        "norm": "projector",
        "connect": "projector",
        "llm.model": "language",
        "llm.lm_head": "head",
    }
    assert all(tower.why for tower in anatomy.towers)
    assert "get_input_embeddings" in str(anatomy.input_embeddings_error)


def test_parameters_of_towers_add_up() -> None:
    model = build("llava")
    anatomy = find_towers(model, collect(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(tower.parameters for tower in anatomy.towers) == total


@pytest.mark.parametrize(
    ("name", "leaf", "role"),
    [
        ("bert", "query", "attention"),
        ("gpt2", "c_fc", "mlp"),
        ("opt", "fc1", "mlp"),
        ("bloom", "query_key_value", "attention"),
        ("falcon", "dense_4h_to_h", "mlp"),
        ("llama", "lm_head", "head"),
        ("llama", "embed_tokens", "embedding"),
        ("mixtral", "gate", "router"),
    ],
)
def test_roles(name: str, leaf: str, role: str) -> None:
    model = build(name)
    parts = collect(model)
    anatomy = find_towers(model, parts)
    assign_roles(parts, anatomy.towers, anatomy.output_embeddings)
    groups, where = group(parts, anatomy.towers)
    assert {item.role for item in groups if item.leaf == leaf} == {role}
    assert sum(item.count for item in groups) == len(where) == len(parts)


def test_pattern_of_replaces_whole_numbers_only() -> None:
    assert pattern_of("model.layers.12.mlp.w1") == "model.layers.*.mlp.w1"
    assert pattern_of("0.h.3") == "*.h.*"
    assert pattern_of("block2.1x1.conv") == "block2.1x1.conv"


def test_a_patcher_of_bytes_is_no_vision_tower() -> None:
    """BLT cuts bytes into patches; taken for pictures, it left two of three stacks untrained."""
    model = build("blt")
    found = find_towers(model, collect(model)).towers
    assert "vision" not in {tower.kind for tower in found}, found
