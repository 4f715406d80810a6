"""Models of images and sound, as their config classes make them: tiny with a batch, or as a folder.

The forward of none of them is that of a text model, which PEFT's wrappers expect.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
BERT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "encoder_hidden_size": 16, "vocab_size": 64,
}  # fmt: skip
T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "decoder_start_token_id": 0, **TEXT,
}  # fmt: skip
OPT = {
    "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "word_embed_proj_dim": 16, "max_position_embeddings": 64, "model_type": "opt",
    "architectures": ["OPTForCausalLM"], **TEXT,
}  # fmt: skip
LLAMA = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "model_type": "llama",
    "architectures": ["LlamaForCausalLM"], **TEXT,
}  # fmt: skip
TEXT_MODELS = {"t5": T5, "opt": OPT, "llama": LLAMA}
#: Placeholder of an image's tokens in a prompt.
IMAGE_TOKEN = 63

Built = tuple[Any, dict[str, Any]]


def build(name: str, size: int = 2, seed: int = 0) -> Built:
    """A tiny model in float32 and eval mode, and a batch of ``size`` with labels."""
    import torch

    torch.manual_seed(seed)
    model, batch = BUILDERS[name](size)
    return model.float().eval(), batch


def write_folder(name: str, folder: Path) -> str:
    """Write a ``config.json`` of usual size, with the class that it is for; returns that class."""
    import transformers

    config, model_class = _usual(name, transformers)
    config.architectures = [model_class]
    config.save_pretrained(folder)
    return model_class


def pixels(size: int) -> Any:
    import torch

    return torch.randn(size, 3, 16, 16)


def tokens(size: int, length: int = 8) -> Any:
    """Ids above the special tokens and below the placeholder."""
    import torch

    return torch.randint(3, 60, (size, length))


def has_placeholders(config: Any) -> bool:
    """Whether the image goes where the prompt has placeholders; it stood in front of it before."""
    return hasattr(config, "image_token_index")


def _blip2(text: dict[str, Any], instruct: bool, size: int) -> Built:
    import torch
    import transformers

    kind = "InstructBlip" if instruct else "Blip2"
    config = getattr(transformers, f"{kind}Config")(
        vision_config=VISION, qformer_config=BERT, text_config=text, num_query_tokens=4
    )
    ids = tokens(size)
    if has_placeholders(config):
        config.image_token_index = IMAGE_TOKEN
        ids[:, :4] = IMAGE_TOKEN
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    batch = {
        "pixel_values": pixels(size),
        "input_ids": ids,
        "attention_mask": torch.ones(size, 8).long(),
    }
    if instruct:
        batch["qformer_input_ids"] = tokens(size, 4)
        batch["qformer_attention_mask"] = torch.ones(size, 4).long()
    seq2seq = text["model_type"] == "t5"
    batch["labels"] = tokens(size) if seq2seq else ids.clone().clamp(max=60)
    return model, batch


def _blip(head: str, size: int) -> Built:
    import transformers

    config = transformers.BlipConfig(
        vision_config=VISION,
        text_config={**BERT, "projection_dim": 16, "sep_token_id": 2, "bos_token_id": 1,
                     "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64},
        projection_dim=16,
    )  # fmt: skip
    ids = tokens(size)
    batch = {"pixel_values": pixels(size), "input_ids": ids, "labels": ids.clone()}
    return getattr(transformers, head)(config), batch


def _whisper(size: int) -> Built:
    import torch
    import transformers

    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=20, max_target_positions=32, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None, **TEXT,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    return model, {"input_features": torch.randn(size, 8, 40), "labels": tokens(size)}


def _speech2text(size: int) -> Built:
    import torch
    import transformers

    config = transformers.Speech2TextConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, conv_channels=16,
        input_feat_per_channel=8, max_source_positions=64, max_target_positions=32,
        decoder_start_token_id=1, **TEXT,
    )  # fmt: skip
    model = transformers.Speech2TextForConditionalGeneration(config)
    return model, {"input_features": torch.randn(size, 40, 8), "labels": tokens(size)}


def _pix2struct(size: int) -> Built:
    import torch
    import transformers

    config = transformers.Pix2StructConfig(
        text_config={"hidden_size": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
                     "decoder_start_token_id": 0, **TEXT},
        vision_config={"hidden_size": 16, "d_ff": 32, "d_kv": 8, "num_hidden_layers": 2,
                       "num_attention_heads": 2, "patch_embed_hidden_size": 12, "seq_len": 64},
    )  # fmt: skip
    config.decoder_start_token_id = 0
    config.pad_token_id = 0
    model = transformers.Pix2StructForConditionalGeneration(config)
    positions = torch.stack([torch.arange(1, 7), torch.ones(6)], -1)
    flat = torch.cat([positions.expand(size, 6, 2), torch.randn(size, 6, 12)], -1)
    return model, {"flattened_patches": flat, "labels": tokens(size)}


def _vision_encoder_decoder(size: int) -> Built:
    import transformers

    decoder = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=32, add_cross_attention=True, is_decoder=True,
        **TEXT,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VISION), decoder
    )
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model = transformers.VisionEncoderDecoderModel(config)
    return model, {"pixel_values": pixels(size), "labels": tokens(size)}


def _llava_text(size: int) -> Built:
    import torch
    import transformers

    vision = {**VISION, "model_type": "clip_vision_model", "projection_dim": 16}
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=LLAMA, image_token_index=IMAGE_TOKEN
    )
    ids = tokens(size)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    return transformers.LlavaForConditionalGeneration(config), batch


def _t5(size: int) -> Built:
    import transformers

    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
    return model, {"input_ids": tokens(size), "labels": tokens(size)}


def _clip(size: int) -> Built:
    import transformers

    text = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 32, **TEXT,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    batch = {"input_ids": tokens(size), "pixel_values": pixels(size), "return_loss": True}
    return transformers.CLIPModel(config), batch


def _wav2vec2_classifier(size: int) -> Built:
    import torch
    import transformers

    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, mask_time_prob=0.0,
        classifier_proj_size=16, num_labels=3,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForSequenceClassification(config)
    return model, {"input_values": torch.randn(size, 800), "labels": torch.arange(size) % 3}


BUILDERS: dict[str, Callable[[int], Built]] = {
    "instructblip-t5": lambda size: _blip2(T5, True, size),
    "instructblip-opt": lambda size: _blip2(OPT, True, size),
    "instructblip-llama": lambda size: _blip2(LLAMA, True, size),
    "blip2-t5": lambda size: _blip2(T5, False, size),
    "blip2-opt": lambda size: _blip2(OPT, False, size),
    "blip-vqa": lambda size: _blip("BlipForQuestionAnswering", size),
    "blip-caption": lambda size: _blip("BlipForConditionalGeneration", size),
    "whisper": _whisper,
    "speech2text": _speech2text,
    "pix2struct": _pix2struct,
    "vision-encoder-decoder": _vision_encoder_decoder,
    "clip": _clip,
    "wav2vec2-classifier": _wav2vec2_classifier,
    "llava-text": _llava_text,
    "t5": _t5,
}


def _usual(name: str, library: Any) -> tuple[Any, str]:
    """The config that the library makes by itself, and the class."""
    kind, _, text = name.partition("-")
    if kind in ("instructblip", "blip2"):
        prefix = "InstructBlip" if kind == "instructblip" else "Blip2"
        configs = {
            "t5": lambda: library.T5Config(
                decoder_start_token_id=0, architectures=["T5ForConditionalGeneration"]
            ),
            "opt": lambda: library.OPTConfig(architectures=["OPTForCausalLM"]),
            "llama": lambda: library.LlamaConfig(architectures=["LlamaForCausalLM"]),
        }
        config = getattr(library, f"{prefix}Config")(
            vision_config={}, qformer_config={}, text_config=configs[text]().to_dict()
        )
        return config, f"{prefix}ForConditionalGeneration"
    if name == "vision-encoder-decoder":
        decoder = library.GPT2Config(add_cross_attention=True, is_decoder=True)
        config = library.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            library.ViTConfig(), decoder
        )
        config.decoder_start_token_id = config.pad_token_id = decoder.eos_token_id
        return config, "VisionEncoderDecoderModel"
    config_class, model_class = {
        "blip-vqa": ("BlipConfig", "BlipForQuestionAnswering"),
        "blip-caption": ("BlipConfig", "BlipForConditionalGeneration"),
        "whisper": ("WhisperConfig", "WhisperForConditionalGeneration"),
        "speech2text": ("Speech2TextConfig", "Speech2TextForConditionalGeneration"),
        "pix2struct": ("Pix2StructConfig", "Pix2StructForConditionalGeneration"),
        "clip": ("CLIPConfig", "CLIPModel"),
        "wav2vec2-classifier": ("Wav2Vec2Config", "Wav2Vec2ForSequenceClassification"),
        "t5": ("T5Config", "T5ForConditionalGeneration"),
    }[name]
    return getattr(library, config_class)(), model_class
