"""Shrinking is by the meaning of entries: the properties that must hold for any config."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest

from lora_doctor.tiny_model.config_roles import (
    id_map,
    role_of,
    small_head_dim,
    small_heads,
    spread,
    tree,
    vocab_map,
    width_map,
)
from lora_doctor.tiny_model.shrink.layers import plan_layers

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from lora_doctor.tiny_model.shrink.apply import apply_sizes  # noqa: E402
from lora_doctor.tiny_model.shrink.build import sane_weights  # noqa: E402
from lora_doctor.tiny_model.shrink.shrink import ShrinkError, shrink  # noqa: E402
from lora_doctor.tiny_model.shrink.sizes import Sizes  # noqa: E402


def build(name: str) -> Any:
    cls = getattr(transformers, name)
    return lambda config: cls(config)


def node(**values: Any) -> Any:
    return tree(values)


@pytest.mark.parametrize(
    ("key", "value", "role"),
    [
        ("num_hidden_layers", 32, "depth"),
        ("depths", [2, 2, 6, 2], "depths"),
        ("cross_attention_layers", [3, 8, 13], "layer_index"),
        ("num_key_value_heads", 8, "kv_heads"),
        ("encoder_attention_heads", 8, "heads"),
        ("image_token_index", 32000, "ids"),
        ("eos_token_id", [1, 106], "ids"),
        ("n_routed_experts", 64, "experts"),
        ("num_experts_per_tok", 8, "topk"),
        ("type_vocab_size", 2, "keep"),
        ("layerdrop", 0.1, "drop"),
        ("patch_size", 14, "patch"),
        ("max_position_embeddings", 2048, "positions"),
        ("intermediate_size", 11008, "width"),
        ("encoder_hash_byte_group_vocab", 500002, "vocab"),
        ("indexer_compress_ratio", 4, "compression"),
        ("mamba_headdim", 640, "head_dim"),
        ("mamba_chunk_size", 256, "chunk"),
        ("ffn_round_up_to_multiple_of", 64, "keep"),
    ],
)
def test_the_name_of_an_entry_tells_its_role(key: str, value: Any, role: str) -> None:
    assert role_of(key, value) == role


def test_equal_widths_stay_equal_and_different_ones_different() -> None:
    """Towers are tied by numbers: whatever was 4096 must be one number afterwards."""
    root = node(
        text_config={"hidden_size": 4096, "intermediate_size": 11008},
        vision_config={"hidden_size": 1024, "projection_dim": 4096, "intermediate_size": 4096},
    )
    widths = width_map(root, 64)
    assert set(widths) == {1024, 4096, 11008}
    assert len(set(widths.values())) == 3
    assert widths[4096] == 4 * widths[1024]
    assert all(small % 32 == 0 for small in widths.values())


def test_special_ids_stay_distinct_and_inside_the_vocabulary() -> None:
    root = node(vocab_size=151936, image_token_id=151655, eos_token_id=[151645, 2], pad_token_id=0)
    ids = id_map(root)
    vocab = vocab_map(root, len(ids))
    assert len(set(ids.values())) == len(ids) == 2
    assert max(ids.values()) < vocab[151936] <= 1024


def test_codebooks_stay_powers_of_two() -> None:
    """A code is so many bits (Mimi refuses others), and a vocabulary of codes is as large."""
    root = node(vocab_size=8000, audio_vocab_size=2048, codec_config={"codebook_size": 2048})
    small = vocab_map(root, 4)
    assert small == {2048: 512, 8000: 536}


def test_a_dict_of_numbers_is_named_for_what_they_are() -> None:
    """DeepSeek-V4 makes one entry of 128 tokens; of a text of 16 there would be none."""
    config = {"compress_rates": {"sparse": 4, "heavy": 128}, "limits": {"sparse": 128}}
    small, _ = apply_sizes(config, Sizes())
    assert small == {"compress_rates": {"sparse": 4, "heavy": 4}, "limits": {"sparse": 128}}


def test_layers_that_are_run_in_cycles_are_counted_as_often() -> None:
    """HRM counts each of its 16 layers once for each of 8 cycles; an encoder's are its own."""
    config = {"num_layers_per_stack": 16, "num_hidden_layers": 128, "encoder_layers": 24}
    apart, _ = apply_sizes(config, Sizes())
    assert apart["num_hidden_layers"] == apart["encoder_layers"] == 2
    small, _ = apply_sizes(config, Sizes(in_proportion=True))
    assert small == {"num_layers_per_stack": 2, "num_hidden_layers": 16, "encoder_layers": 2}


def test_latent_attention_keeps_its_sum() -> None:
    assert small_head_dim(192) == small_head_dim(128) + small_head_dim(64)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 12, 71])
def test_heads_are_powers_of_two(heads: int) -> None:
    assert small_heads(heads) in (1, 2, 4)


def test_spread_keeps_the_sum() -> None:
    assert spread(8, [16, 24, 24]) == [2, 3, 3]
    assert sum(spread(16, [24, 20, 20])) == 16


def test_one_layer_of_each_kind_stays() -> None:
    kinds = ["linear", "linear", "linear", "full"] * 8
    plan = plan_layers(node(num_hidden_layers=32, layer_types=kinds), 2)
    assert plan.values == {"num_hidden_layers": 2, "layer_types": ["linear", "full"]}


def test_kinds_that_are_repeated_over_all_layers_stay() -> None:
    """RecurrentGemma: two of three blocks are recurrent, and the third has the attention."""
    plan = plan_layers(
        node(num_hidden_layers=26, block_types=["recurrent", "recurrent", "attention"]), 2
    )
    assert plan.values == {"num_hidden_layers": 2, "block_types": ["recurrent", "attention"]}


def test_dense_and_sparse_layers_stay() -> None:
    plan = plan_layers(node(num_hidden_layers=61, first_k_dense_replace=3), 2)
    assert plan.values == {"num_hidden_layers": 2, "first_k_dense_replace": 1}


def test_layer_numbers_follow_the_layers_kept() -> None:
    plan = plan_layers(node(num_hidden_layers=40, cross_attention_layers=[3, 8, 13]), 2)
    assert plan.values == {"num_hidden_layers": 2, "cross_attention_layers": [1]}


def test_shared_layers_keep_one_to_share_from() -> None:
    kinds = ["sliding", "full"] * 4
    plan = plan_layers(node(num_hidden_layers=8, num_kv_shared_layers=4, layer_types=kinds), 2)
    assert plan.values["num_kv_shared_layers"] == 2
    assert plan.values["layer_types"] == ["sliding", "full", "sliding", "full"]


def test_the_config_handed_in_is_not_changed() -> None:
    config = transformers.LlamaConfig()
    before = copy.deepcopy(config.to_dict())
    shrink(config, build("LlamaForCausalLM"))
    assert config.to_dict() == before


def test_grouped_attention_stays_grouped_and_modules_keep_their_names() -> None:
    config = transformers.LlamaConfig(num_key_value_heads=8)
    result = shrink(config, build("LlamaForCausalLM"))
    small = result.config
    assert 1 <= small.num_key_value_heads < small.num_attention_heads
    with torch.device("meta"):
        config.num_hidden_layers = small.num_hidden_layers
        full = transformers.LlamaForCausalLM(config)
    assert [n for n, _ in full.named_modules()] == [n for n, _ in result.model.named_modules()]
    assert {type(m) for m in full.modules()} == {type(m) for m in result.model.modules()}
    assert sum(p.numel() for p in result.model.parameters()) < 5_000_000
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    assert result.model.training and result.attempts == 1 and result.steps


def test_a_tiny_model_has_a_finite_loss_and_gradients() -> None:
    from lora_doctor.tiny_model.batch.loss import batch_loss

    result = shrink(transformers.MixtralConfig(), build("MixtralForCausalLM"))
    loss = batch_loss(result.model, result.batch)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in result.model.parameters())


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one = shrink(transformers.GPT2Config(), build("GPT2LMHeadModel"))
    assert torch.rand(1) == expected
    two = shrink(transformers.GPT2Config(), build("GPT2LMHeadModel"))
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ("xLSTMConfig", "xLSTMForCausalLM"),  # widths are rounded up to a multiple of 64
        ("Zamba2Config", "Zamba2ForCausalLM"),  # `mamba_headdim` follows from other entries
        ("Mistral4Config", "Mistral4ForCausalLM"),  # `head_dim` is that of latent attention
    ],
)
def test_numbers_that_follow_from_others_still_do(config: str, model: str) -> None:
    if not hasattr(transformers, config):
        pytest.skip(f"this transformers has no {config}")
    code = inspect.getsource(inspect.getmodule(getattr(transformers, model)))
    if "vecM_k_combine(batch_size" in code:
        pytest.skip("this xLSTM calls a tensor as a function (transformers 4.57)")
    result = shrink(getattr(transformers, config)(), build(model))
    assert result.batch is not None, result.steps


def test_a_default_is_one_of_those_listed() -> None:
    """X-MOD: each language has its adapter, and which one is to be used nobody said."""
    result = shrink(transformers.XmodConfig(), build("XmodForCausalLM"))
    assert result.config.default_language == "en_XX" and result.batch is not None


def test_tiles_follow_the_image() -> None:
    """LLaVA-NeXT: 24 patches per side become 4, and a picture of two tiles stays one of two."""
    if not hasattr(transformers, "LlavaNextConfig"):
        pytest.skip("this transformers has no LLaVA-NeXT")
    config = transformers.LlavaNextConfig(image_grid_pinpoints=[[336, 672], [1008, 336]])
    small = shrink(config, build("LlavaNextForConditionalGeneration"), try_forward=False).config
    side = small.vision_config.image_size
    assert side == 56
    assert small.image_grid_pinpoints == [[side, 2 * side], [3 * side, side]]


def test_an_entry_behind_a_property_is_an_entry() -> None:
    """PaliGemma in 4.44 keeps its vocabulary's size in `_vocab_size`."""

    class Hidden(transformers.PretrainedConfig):
        model_type = "hidden"

        @property
        def vocab_size(self) -> int:
            return self._vocab_size

        @vocab_size.setter
        def vocab_size(self, value: int) -> None:
            self._vocab_size = value

    config = Hidden()
    config.vocab_size = 257152
    small, _ = apply_sizes(config, Sizes())
    assert small.vocab_size < 1000 and config.vocab_size == 257152


def test_layers_do_not_vanish_while_dropout_stays() -> None:
    config = transformers.BartConfig(encoder_layerdrop=0.5, dropout=0.1)
    result = shrink(config, build("BartForConditionalGeneration"))
    assert result.config.encoder_layerdrop == 0.0
    assert result.config.dropout == 0.1
    assert any("layerdrop" in step for step in result.steps)


def test_garbage_weights_are_initialised() -> None:
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.fill_(float("nan"))
    assert sane_weights(layer) == ["weight"]
    assert layer.weight.isfinite().all()


def test_what_cannot_be_built_says_so_in_one_line() -> None:
    def refuse(config: Any) -> Any:
        raise RuntimeError("no\nsuch thing")

    with pytest.raises(ShrinkError, match="no such thing") as caught:
        shrink(transformers.LlamaConfig(), refuse)
    assert "\n" not in caught.value.reason


@pytest.mark.parametrize(("last", "dead"), [(11, 0), (9, 2)])
def test_what_layers_give_out_is_as_far_from_the_end_as_before(last: int, dead: int) -> None:
    """As many of them, none below 1: some models count from 0 and others from 1."""
    given_out = (2, 5, 8, last)
    plan = plan_layers(node(num_hidden_layers=12, backbone_out_indices=given_out), 2)
    small = plan.values["backbone_out_indices"]
    assert len(set(small)) == 4 and min(small) == 1
    assert plan.depth - 1 - max(small) == dead


@pytest.mark.parametrize("name", ["sam", "sam2", "sam3_tracker", "depth_pro"])
def test_sizes_of_the_image_that_stand_in_several_places_agree(name: str) -> None:
    """SAM's prompt encoder counts patches itself, Hiera has strides for patches, and SAM 3 writes
    down how large its maps are; Depth Pro's patches are the images of another tower."""
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if name not in CONFIG_MAPPING:
        pytest.skip("this transformers has no such model")
    tiny = shrink(CONFIG_MAPPING[name](), AutoModel.from_config)
    assert tiny.batch is not None and tiny.batch.modality == ["image"]
    assert tiny.batch.inputs["pixel_values"].shape[-1] <= 256


def test_lists_with_a_number_for_each_stage() -> None:
    """SAM 2's Hiera: the name of one of them says what the numbers are."""
    assert role_of("blocks_per_stage", [1, 2, 7, 2]) == "depths"
    assert role_of("embed_dim_per_stage", [96, 192, 384, 768]) == "width"
    assert role_of("num_attention_heads_per_stage", [1, 2, 4, 8]) == "heads"
    stages = node(blocks_per_stage=[1, 2, 7, 2], global_attention_blocks=[5, 7, 9])
    assert plan_layers(stages, 2).values == {
        "blocks_per_stage": [1, 2, 2, 2],
        "global_attention_blocks": [4],
    }, "a block with global attention and one without in the third stage"
