"""Healthy model folders of many architectures: tiny random models, saved by transformers itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WORDS = ["<unk>", "<s>", "</s>", "<pad>", *(f"w{number}" for number in range(56))]
TEXT: Mapping[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64,
    "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
_SEQ2SEQ = {
    "d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 64,
    "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
_MOE = {"num_experts_per_tok": 2}


def _named(prefix: str, head: str, **options: Any) -> Callable[[Any], Any]:
    def make(transformers: Any) -> Any:
        config = getattr(transformers, f"{prefix}Config")(**options)
        return getattr(transformers, f"{prefix}{head}")(config)

    return make


def _llava(transformers: Any) -> Any:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=60,
    )
    return transformers.LlavaForConditionalGeneration(config)


def _gemma3(transformers: Any) -> Any:
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(head_dim=8, **TEXT))


def _mllama(transformers: Any) -> Any:
    """Its embedding has eight rows more than ``vocab_size``."""
    options = {key: value for key, value in TEXT.items() if key != "max_position_embeddings"}
    config = transformers.models.mllama.configuration_mllama.MllamaTextConfig(
        cross_attention_layers=[1],
        rope_scaling={"rope_type": "default", "rope_theta": 10000.0},
        **options,
    )
    return transformers.MllamaForCausalLM(config)


#: How each model is made; a class that the installed release lacks raises AttributeError.
MODELS: Mapping[str, Callable[[Any], Any]] = {
    "llama": _named("Llama", "ForCausalLM", **TEXT),
    "qwen2 padded": _named("Qwen2", "ForCausalLM", **{**TEXT, "vocab_size": 128}),
    "gpt2": _named("GPT2", "LMHeadModel", n_embd=16, n_layer=3, n_head=2, vocab_size=64,
                   bos_token_id=1, eos_token_id=2),
    "t5": _named("T5", "ForConditionalGeneration", d_model=16, d_kv=8, d_ff=32, num_layers=3,
                 num_decoder_layers=2, num_heads=2, vocab_size=64, pad_token_id=3),
    "bart": _named("Bart", "ForConditionalGeneration", **_SEQ2SEQ),
    "bert": _named("Bert", "ForMaskedLM", **{**TEXT, "num_key_value_heads": None}),
    "albert": _named("Albert", "ForMaskedLM", embedding_size=8, **TEXT),
    "whisper": _named("Whisper", "ForConditionalGeneration", num_mel_bins=8,
                      max_source_positions=20, max_target_positions=20, **_SEQ2SEQ),
    "wav2vec2 with a larger tokenizer": _named(
        "Wav2Vec2", "ForCTC", vocab_size=32, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8), conv_stride=(5, 2),
        conv_kernel=(10, 3), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2),
    "llava": _llava,
    "mixtral": _named("Mixtral", "ForCausalLM", num_local_experts=4, **_MOE, **TEXT),
    "mamba": _named("Mamba", "ForCausalLM", hidden_size=16, num_hidden_layers=3, state_size=4,
                    vocab_size=64, pad_token_id=3),
    "opt": _named("OPT", "ForCausalLM", hidden_size=16, ffn_dim=32, num_hidden_layers=2,
                  num_attention_heads=2, word_embed_proj_dim=16, vocab_size=64, pad_token_id=3),
    "gemma3": _gemma3,
    "deepseek_v3": _named(
        "DeepseekV3", "ForCausalLM", moe_intermediate_size=16, n_routed_experts=4, n_group=2,
        topk_group=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
        v_head_dim=8, first_k_dense_replace=1, num_nextn_predict_layers=1, **_MOE, **TEXT),
    "mllama": _mllama,
}  # fmt: skip


def tokenizer(words: list[str]) -> Any:
    """A tokenizer of these words, as transformers wraps one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


def save(name: str, folder: Path, shard: str = "5GB") -> Path:
    """The model and its tokenizer in ``folder``, in files of at most ``shard``.

    Raises:
        AttributeError: this transformers has no such class.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    model = MODELS[name](transformers)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer(WORDS).save_pretrained(folder)
    return folder
