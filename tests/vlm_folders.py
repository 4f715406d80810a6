"""The models of the report on ModifiedLISA as local folders, and what plain PEFT makes of them.

Two kinds: the ``config.json`` of a published checkpoint at its full size, without weights; and a
small checkpoint of the same class with random weights. Nothing here asks the tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPE = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1}
#: What the report calls "precision", as a recipe says it.
PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "no": {"dtype": "float32"},
    "fp16": {"dtype": "float16"},
    "bf16": {"dtype": "bfloat16"},
    "4-bit": {"load_in_4bit": True},
    "8-bit": {"load_in_8bit": True},
}

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

_SMALL_TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 256, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_SMALL_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A checkpoint of the report.

    ``entries``: of its config.json, with the published numbers. ``small``: what a small checkpoint
    of the same class has instead. ``parameters``: numbers in the whole model. ``towers``: kinds
    that it is made of. ``language``: the path (a regular expression) of its language tower, by
    which plain PEFT is told what to train.
    """

    model_class: str
    entries: Mapping[str, Any]
    small: Mapping[str, Any]
    parameters: int
    towers: tuple[str, ...] = ("head", "language", "projector", "vision")
    language: str = r".*(language_model|text_model)\..*"


PUBLISHED: Mapping[str, Published] = {
    "LLaVA 1.5": Published(
        "LlavaForConditionalGeneration",
        {
            "model_type": "llava", "image_token_index": 32000, "pad_token_id": 32001,
            "vision_feature_layer": -2, "tie_word_embeddings": False,
            "vision_config": _CLIP_L_336,
            "text_config": {"model_type": "llama", "vocab_size": 32064,
                            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
        },
        {"image_token_index": 200, "pad_token_id": 0, "text_config": _SMALL_TEXT,
         "vision_config": _SMALL_VISION},
        7_063_427_072,
    ),
    "LLaVA 1.6": Published(
        "LlavaNextForConditionalGeneration",
        {
            "model_type": "llava_next", "image_token_index": 32000, "tie_word_embeddings": False,
            "image_grid_pinpoints":
                [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            "vision_feature_layer": -2, "vision_config": _CLIP_L_336,
            "text_config": {"model_type": "mistral", "vocab_size": 32064,
                            "intermediate_size": 14336, "num_key_value_heads": 8,
                            "rope_theta": 1e6, "sliding_window": None},
        },
        {"image_token_index": 200, "image_grid_pinpoints": [[56, 112], [112, 56]],
         "text_config": {**_SMALL_TEXT, "num_key_value_heads": 2},
         "vision_config": _SMALL_VISION},
        7_566_747_648,
    ),
    "SmolVLM": Published(
        "Idefics3ForConditionalGeneration",
        {
            "model_type": "idefics3", "image_token_id": 49153, "scale_factor": 3,
            "tie_word_embeddings": False, "text_config": _SMOLLM2,
            "vision_config": {**_SIGLIP_SO400M, "model_type": "idefics3_vision",
                              "image_size": 384},
        },
        {"image_token_id": 200, "scale_factor": 2, "pad_token_id": 0,
         "text_config": {**_SMALL_TEXT, "num_key_value_heads": 4},
         "vision_config": _SMALL_VISION},
        2_246_272_880,
    ),
    "SmolVLM2": Published(
        "SmolVLMForConditionalGeneration",
        {
            "model_type": "smolvlm", "image_token_id": 49190, "scale_factor": 3,
            "pad_token_id": 2, "tie_word_embeddings": False,
            "text_config": {**_SMOLLM2, "vocab_size": 49280},
            "vision_config": {**_SIGLIP_SO400M, "model_type": "smolvlm_vision",
                              "image_size": 384},
        },
        {"image_token_id": 200, "scale_factor": 2, "pad_token_id": 0,
         "text_config": {**_SMALL_TEXT, "num_key_value_heads": 4},
         "vision_config": _SMALL_VISION},
        2_246_784_880,
    ),
    "Qwen2-VL": Published(
        "Qwen2VLForConditionalGeneration",
        {
            "model_type": "qwen2_vl", "hidden_size": 1536, "intermediate_size": 8960,
            "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
            "vocab_size": 151936, "tie_word_embeddings": True, "bos_token_id": 151643,
            "eos_token_id": 151645, "vision_start_token_id": 151652,
            "vision_end_token_id": 151653, "vision_token_id": 151654,
            "image_token_id": 151655, "video_token_id": 151656, "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16,
                              "in_chans": 3, "hidden_size": 1536, "patch_size": 14,
                              "spatial_merge_size": 2, "temporal_patch_size": 2},
        },
        {
            **_SMALL_TEXT, "num_key_value_heads": 2, "vision_start_token_id": 202,
            "vision_end_token_id": 203, "vision_token_id": 204, "image_token_id": 200,
            "video_token_id": 201, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "vision_config": {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64},
        },
        2_208_985_600,
    ),
    "PaliGemma": Published(
        "PaliGemmaForConditionalGeneration",
        {
            "model_type": "paligemma", "image_token_index": 257152, "projection_dim": 2048,
            "hidden_size": 2048, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
            "text_config": {"model_type": "gemma", "hidden_size": 2048,
                            "intermediate_size": 16384, "num_hidden_layers": 18,
                            "num_attention_heads": 8, "num_key_value_heads": 1,
                            "num_image_tokens": 256, "vocab_size": 257216},
            "vision_config": {**_SIGLIP_SO400M, "model_type": "siglip_vision_model",
                              "image_size": 224, "projection_dim": 2048,
                              "num_image_tokens": 256, "vision_use_head": False},
        },
        {
            "image_token_index": 200, "projection_dim": 64, "hidden_size": 64,
            "text_config": {**_SMALL_TEXT, "head_dim": 16, "num_image_tokens": 16},
            "vision_config": {**_SMALL_VISION, "projection_dim": 64, "num_image_tokens": 16},
        },
        2_923_466_480,
    ),
    "CLIP": Published(
        "CLIPModel",
        {
            "model_type": "clip", "projection_dim": 512,
            "text_config": {"model_type": "clip_text_model", "eos_token_id": 49407,
                            "bos_token_id": 49406},
            "vision_config": {"model_type": "clip_vision_model", "patch_size": 16},
        },
        {"projection_dim": 32, "text_config": {**_SMALL_TEXT, "projection_dim": 32},
         "vision_config": {**_SMALL_VISION, "projection_dim": 32}},
        149_620_737,
        ("language", "projector", "projector", "vision"),
    ),
    "Qwen3": Published(
        "Qwen3ForCausalLM",
        {
            "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
            "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
            "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
            "rope_theta": 1e6, "max_position_embeddings": 32768,
        },
        {**_SMALL_TEXT, "num_key_value_heads": 2, "head_dim": 16},
        596_049_920,
        ("head", "language"),
        r".*layers\..*",
    ),
}  # fmt: skip

_LINEAR = r"\.(q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj|fc1|fc2)"
_LENGTH = 12


def missing_class(name: str) -> str:
    """What the cell of a table says where the installed transformers has no such model."""
    import transformers

    wanted = PUBLISHED[name].model_class
    return "" if hasattr(transformers, wanted) else f"no {wanted} here"


def config(name: str, *, small: bool = False) -> Any:
    """The config object of a checkpoint, by the class of the installed transformers."""
    from transformers import AutoConfig

    published = PUBLISHED[name]
    entries = dict(published.entries)
    for key, value in published.small.items() if small else ():
        before = entries.get(key)
        merge = isinstance(value, Mapping) and isinstance(before, Mapping)
        entries[key] = {**before, **value} if merge else value  # type: ignore[dict-item]
    made = AutoConfig.for_model(**entries)
    made.architectures = [published.model_class]
    return made


def write_config(folder: Path, name: str) -> Path:
    """A folder with the ``config.json`` of a published checkpoint, and no weights."""
    config(name).save_pretrained(folder)
    return folder


def write_checkpoint(folder: Path, name: str) -> Path:
    """A folder with a small model of the same class: config and random weights."""
    build(name).save_pretrained(folder, safe_serialization=True)
    return folder


def build(name: str) -> Any:
    """A small model of the same class, with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, PUBLISHED[name].model_class)(config(name, small=True))
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.any()):  # CLIP's class token and the like start at zero
                parameter.normal_(0.0, 0.02)
    return model


def trains_plainly(folder: Path, name: str, precision: str) -> str:
    """What transformers and PEFT alone make of the report's recipe: empty when every adapter of
    the language tower gets a finite gradient other than zero on every kind of batch, else why not.
    """
    import peft
    import torch

    base = _load(folder, name, precision)
    config = peft.LoraConfig(
        target_modules=PUBLISHED[name].language + _LINEAR,
        # B other than zero, so that one backward reaches A as well.
        init_lora_weights=False,
        **RECIPE,
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    # As the Trainer has it: fp16 is trained with a scaler, without which gradients vanish.
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=precision == "fp16")
    for kind, batch in batches(name).items():
        model.zero_grad(set_to_none=True)
        wanted = next(p.dtype for p in base.parameters() if p.is_floating_point())
        inputs = {
            key: value.to(wanted) if torch.is_tensor(value) and value.is_floating_point() else value
            for key, value in batch.items()
        }
        loss = model(**inputs).loss
        if not bool(loss.isfinite()):
            return f"{kind}: the loss is {float(loss)}"
        scaler.scale(loss).backward()
        adapters = {n: p for n, p in model.named_parameters() if "lora_" in n}
        bad = [
            n
            for n, p in adapters.items()
            if p.grad is None or not bool(p.grad.isfinite().all()) or not bool(p.grad.any())
        ]
        others = [n for n, p in model.named_parameters() if p.requires_grad and n not in adapters]
        if bad or others or not adapters:
            return f"{kind}: {len(bad)} of {len(adapters)} without gradient {bad[:2]} {others[:2]}"
        scaler.step(optimizer)
        scaler.update()
    return ""


def _load(folder: Path, name: str, precision: str) -> Any:
    import peft
    import torch
    import transformers

    cls = getattr(transformers, PUBLISHED[name].model_class)
    if precision in ("4-bit", "8-bit"):
        quantization = transformers.BitsAndBytesConfig(**PRECISIONS[precision])
        model = cls.from_pretrained(
            folder, quantization_config=quantization, device_map={"": "cpu"}
        )
        packed = {type(module).__name__ for module in model.modules()}
        assert packed & {"Linear4bit", "Linear8bitLt"}, "nothing was quantized"
        return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    dtype = getattr(torch, PRECISIONS[precision]["dtype"])
    return cls.from_pretrained(folder, torch_dtype=dtype)


def batches(name: str) -> dict[str, dict[str, Any]]:
    """Batches for the small checkpoint as its processor makes them: with pictures, and without
    (which CLIP and a model of text alone do not have both)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, 190, (2, _LENGTH), generator=generator)
    plain = {"input_ids": text, "attention_mask": torch.ones_like(text), "labels": text.clone()}
    if name == "Qwen3":
        return {"text": plain}
    pixels = torch.rand((2, 3, 56, 56), generator=generator) * 2 - 1
    if name == "CLIP":
        ends = text.clone()
        ends[:, -1] = 2
        return {"image+text": {"input_ids": ends, "pixel_values": pixels, "return_loss": True}}
    inputs: dict[str, Any] = {"pixel_values": pixels}
    tokens, around = 16, ((), ())
    if name == "LLaVA 1.6":
        # An overview and two tiles; 4 by 8 patches with a mark at the end of each row.
        inputs["pixel_values"] = torch.rand((2, 3, 3, 56, 56), generator=generator) * 2 - 1
        inputs["image_sizes"] = torch.tensor([[56, 112]] * 2)
        tokens = 16 + 4 * (8 + 1)
    if name.startswith("SmolVLM"):
        inputs["pixel_values"] = pixels[:, None]
        inputs["pixel_attention_mask"] = torch.ones((2, 1, 56, 56), dtype=torch.long)
        tokens = 4
    if name == "Qwen2-VL":
        inputs["pixel_values"] = torch.rand((32, 1176), generator=generator) * 2 - 1
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
        tokens, around = 4, ((202,), (203,))
    if name.startswith("LLaVA") and _one_place_for_an_image():
        tokens = 1
    middle = torch.tensor([[*around[0], *[200] * tokens, *around[1]]] * 2)
    ids = torch.cat([text[:, :2], middle, text[:, 2:]], dim=1)
    labels = ids.masked_fill(ids >= 200, -100)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if name == "Qwen2-VL" and _takes(name, "mm_token_type_ids"):
        inputs["mm_token_type_ids"] = (ids == 200).long()
    if name == "PaliGemma":
        inputs["token_type_ids"] = (labels != -100).long()
    return {"image+text": inputs, "text": plain}


def _one_place_for_an_image() -> bool:
    """Before 4.45 a prompt holds one place for an image, whatever number of features it has."""
    import transformers
    from packaging.version import Version

    return Version(transformers.__version__) < Version("4.45")


def _takes(name: str, argument: str) -> bool:
    import inspect

    import transformers

    cls = getattr(transformers, PUBLISHED[name].model_class)
    return argument in inspect.signature(cls.forward).parameters
