"""Checkpoints that lack weights of the class that is trained on them, and complete ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 64, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
_LLAMA = {**_TEXT, "num_key_value_heads": 2}
_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14, "num_labels": 3,
}  # fmt: skip
_SOUND = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_labels": 3,
    "classifier_proj_size": 16,
}  # fmt: skip
_T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 64,
    "pad_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 32}
_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
QUERY_VALUE = {"target_modules": ["query", "value"]}
Q_V = {"target_modules": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Folder:
    """A checkpoint and what is trained on it.

    ``saved``: makes the model that is saved. ``trained``: name of the class that is trained.
    ``recipe``: of the adapters. ``without``: beginnings of names that are taken out of the
    checkpoint. ``prefix``: is put before every name in it. ``random``: what is then random at every
    loading and not saved, as the finding names it; empty where nothing is.
    """

    saved: Callable[[Any], Any]
    trained: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    prefix: str = ""
    random: tuple[str, ...] = ()


def _made(name: str, config: str, **options: Any) -> Callable[[Any], Any]:
    def make(transformers: Any) -> Any:
        return getattr(transformers, name)(getattr(transformers, config)(**options))

    return make


def _llava(transformers: Any) -> Any:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**{**_VISION, "num_labels": 2}),
        text_config=transformers.LlamaConfig(**_LLAMA),
        image_token_index=60,
    )
    return transformers.LlavaForConditionalGeneration(config)


BROKEN: Mapping[str, Folder] = {
    "a masked language model has no pooler": Folder(
        _made("BertForMaskedLM", "BertConfig", **_TEXT, num_labels=3),
        "BertForSequenceClassification",
        {"task_type": "SEQ_CLS", **QUERY_VALUE},
        random=("bert.pooler",),
    ),
    "adapters on the pooler do not save it": Folder(
        _made("ElectraForMaskedLM", "ElectraConfig", **_TEXT, embedding_size=16, num_labels=3),
        "ElectraForSequenceClassification",
        {"task_type": None, "target_modules": ["query", "dense"]},
        random=("classifier",),
    ),
    "sound has a projector before the classifier": Folder(
        _made("Wav2Vec2Model", "Wav2Vec2Config", **_SOUND),
        "Wav2Vec2ForSequenceClassification",
        {"task_type": None, "modules_to_save": ["classifier"], **Q_V},
        random=("projector",),
    ),
    "the projector of a model that was put together": Folder(
        _llava,
        "LlavaForConditionalGeneration",
        {"task_type": None, **Q_V},
        without=("multi_modal_projector.", "model.multi_modal_projector."),
        random=("multi_modal_projector",),
    ),
    "a head that PEFT has no name for": Folder(
        _made("BartModel", "BartConfig", **_BART, num_labels=3),
        "BartForSequenceClassification",
        {"task_type": "SEQ_CLS", **Q_V},
        random=("classification_head",),
    ),
    "a parameter that stands in no module of its own": Folder(
        _made("ViTForImageClassification", "ViTConfig", **_VISION),
        "ViTForImageClassification",
        {"target_modules": r".*attention.*(query|value|q_proj|v_proj)"},
        without=("vit.embeddings.position_embeddings",),
        random=("vit.embeddings.position_embeddings",),
    ),
    "every name begins otherwise": Folder(
        _made("LlamaForCausalLM", "LlamaConfig", **_LLAMA),
        "LlamaForCausalLM",
        {"task_type": "CAUSAL_LM", **Q_V},
        prefix="wrapped.",
        random=("model",),
    ),
}  # fmt: skip

HEALTHY: Mapping[str, Folder] = {
    "llama": Folder(
        _made("LlamaForCausalLM", "LlamaConfig", **_LLAMA),
        "LlamaForCausalLM",
        {"task_type": "CAUSAL_LM", **Q_V},
    ),
    "bert with its pooler": Folder(
        _made("BertModel", "BertConfig", **_TEXT, num_labels=3),
        "BertForSequenceClassification",
        {"task_type": "SEQ_CLS", **QUERY_VALUE},
    ),
    "bert, the pooler saved with the adapters": Folder(
        _made("BertForMaskedLM", "BertConfig", **_TEXT, num_labels=3),
        "BertForSequenceClassification",
        {"task_type": "SEQ_CLS", "modules_to_save": ["pooler"], **QUERY_VALUE},
    ),
    "gpt2 has no head because it is tied": Folder(
        _made("GPT2LMHeadModel", "GPT2Config", **_GPT2),
        "GPT2LMHeadModel",
        {"task_type": "CAUSAL_LM", "target_modules": ["c_attn"], "fan_in_fan_out": True},
    ),
    "t5, tied": Folder(
        _made("T5ForConditionalGeneration", "T5Config", **_T5),
        "T5ForConditionalGeneration",
        {"task_type": "SEQ_2_SEQ_LM", "target_modules": ["q", "v"]},
    ),
    "vit without a pooler, the classifier drawn on purpose": Folder(
        _made("ViTModel", "ViTConfig", **_VISION),
        "ViTForImageClassification",
        {"target_modules": r".*attention.*(query|value|q_proj|v_proj)",
         "modules_to_save": ["classifier"]},
    ),
    "distilbert: one name of PEFT's means both layers of the head": Folder(
        _made("DistilBertForMaskedLM", "DistilBertConfig", dim=32, hidden_dim=64, n_layers=2,
              n_heads=4, vocab_size=64, max_position_embeddings=32, num_labels=3),
        "DistilBertForSequenceClassification",
        {"task_type": "SEQ_CLS", "target_modules": ["q_lin", "v_lin"]},
    ),
    "a classifier on a language model": Folder(
        _made("LlamaForCausalLM", "LlamaConfig", **_LLAMA, num_labels=3),
        "LlamaForSequenceClassification",
        {"task_type": "SEQ_CLS", **Q_V},
    ),
    "biases that the class begins with at zero": Folder(
        _made("LlamaForCausalLM", "LlamaConfig", **_LLAMA, attention_bias=True),
        "LlamaForCausalLM",
        {"task_type": "CAUSAL_LM", **Q_V},
        without=tuple(f"model.layers.{layer}.self_attn.{part}_proj.bias"
                      for layer in (0, 1) for part in "qkvo"),
    ),
}  # fmt: skip


def save(folder: Folder, path: Path) -> Path:
    """The checkpoint in ``path``."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    folder.saved(transformers).save_pretrained(path, safe_serialization=True)
    file = path / "model.safetensors"
    tensors = {
        f"{folder.prefix}{name}": value
        for name, value in load_file(file).items()
        if not name.startswith(folder.without or ("\0",))
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return path
