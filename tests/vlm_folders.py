"""The models of the report on ModifiedLISA as local folders, with the sizes that are published.

Numbers of published checkpoints; the config classes of the installed transformers write the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CLIP_L_336 = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    "projection_dim": 768,
}  # fmt: skip
_SIGLIP_SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "patch_size": 14,
}  # fmt: skip
_SMOLLM2 = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32,
    "vocab_size": 49155, "pad_token_id": 2, "max_position_embeddings": 16384,
}  # fmt: skip

#: Published name, to the class and the entries of its config.json.
PUBLISHED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llava-1.5-7b": ("LlavaForConditionalGeneration", {
        "model_type": "llava", "image_token_index": 32000, "pad_token_id": 32001,
        "vision_feature_layer": -2, "tie_word_embeddings": False, "vision_config": _CLIP_L_336,
        "text_config": {"model_type": "llama", "vocab_size": 32064,
                        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    }),
    "llava-v1.6-mistral-7b": ("LlavaNextForConditionalGeneration", {
        "model_type": "llava_next", "image_token_index": 32000, "tie_word_embeddings": False,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        "vision_feature_layer": -2, "vision_config": _CLIP_L_336,
        "text_config": {"model_type": "mistral", "vocab_size": 32064, "intermediate_size": 14336,
                        "num_key_value_heads": 8, "rope_theta": 1e6, "sliding_window": None},
    }),
    "SmolVLM-Instruct": ("Idefics3ForConditionalGeneration", {
        "model_type": "idefics3", "image_token_id": 49153, "scale_factor": 3,
        "tie_word_embeddings": False, "text_config": _SMOLLM2,
        "vision_config": {**_SIGLIP_SO400M, "model_type": "idefics3_vision", "image_size": 384},
    }),
    "SmolVLM2-2.2B-Instruct": ("SmolVLMForConditionalGeneration", {
        "model_type": "smolvlm", "image_token_id": 49190, "scale_factor": 3, "pad_token_id": 2,
        "tie_word_embeddings": False, "text_config": {**_SMOLLM2, "vocab_size": 49280},
        "vision_config": {**_SIGLIP_SO400M, "model_type": "smolvlm_vision", "image_size": 384},
    }),
    "Qwen2-VL-2B-Instruct": ("Qwen2VLForConditionalGeneration", {
        "model_type": "qwen2_vl", "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "vocab_size": 151936, "tie_word_embeddings": True, "bos_token_id": 151643,
        "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
        "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1e6,
        "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16,
                          "in_chans": 3, "hidden_size": 1536, "patch_size": 14,
                          "spatial_merge_size": 2, "temporal_patch_size": 2},
    }),
    "paligemma-3b-pt-224": ("PaliGemmaForConditionalGeneration", {
        "model_type": "paligemma", "image_token_index": 257152, "projection_dim": 2048,
        "hidden_size": 2048, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
        "text_config": {"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384,
                        "num_hidden_layers": 18, "num_attention_heads": 8,
                        "num_key_value_heads": 1, "num_image_tokens": 256, "vocab_size": 257216},
        "vision_config": {**_SIGLIP_SO400M, "model_type": "siglip_vision_model",
                          "image_size": 224, "projection_dim": 2048, "num_image_tokens": 256,
                          "vision_use_head": False},
    }),
    "clip-vit-base-patch16": ("CLIPModel", {
        "model_type": "clip", "projection_dim": 512,
        "text_config": {"model_type": "clip_text_model", "eos_token_id": 49407,
                        "bos_token_id": 49406},
        "vision_config": {"model_type": "clip_vision_model", "patch_size": 16},
    }),
    "Qwen3-0.6B-Base": ("Qwen3ForCausalLM", {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True, "rope_theta": 1e6,
        "max_position_embeddings": 32768,
    }),
}  # fmt: skip


def known(name: str) -> bool:
    """Whether the installed transformers has the class of this checkpoint."""
    import transformers

    return hasattr(transformers, PUBLISHED[name][0])


def config(name: str) -> Any:
    """The config object of a published checkpoint, by the class of the installed transformers."""
    from transformers import AutoConfig

    model_class, entries = PUBLISHED[name]
    made = AutoConfig.for_model(**entries)
    made.architectures = [model_class]
    return made


def write_folder(folder: Path, name: str) -> Path:
    """A folder with the ``config.json`` of a published checkpoint, and no weights."""
    config(name).save_pretrained(folder)
    return folder
