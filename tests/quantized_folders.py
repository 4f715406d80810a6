"""Folders of models as they are published quantized, and what plain transformers and PEFT make of
them: made on the spot, tiny, with the ``quantization_config`` that published checkpoints have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN: Mapping[str, Any] = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
                           "head_dim": 16}  # fmt: skip

#: As in config.json of published checkpoints of the method.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "mxfp4": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
            "lm_head",
        ],
    },
    "fp8": {
        "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
        "weight_block_size": [128, 128],
    },
    "gptq": {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "damp_percent": 0.1,
        "desc_act": True, "sym": True, "true_sequential": True, "model_file_base_name": "model",
    },
    "awq": {
        "quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True,
        "modules_to_not_convert": None,
    },
    "compressed-tensors fp8": {
        "quant_method": "compressed-tensors", "format": "float-quantized",
        "quantization_status": "compressed", "ignore": ["lm_head"], "kv_cache_scheme": None,
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True,
                        "dynamic": False, "observer": "minmax"},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token",
                                  "symmetric": True, "dynamic": True},
        }},
    },
    "compressed-tensors packed": {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "ignore": ["lm_head"], "kv_cache_scheme": None,
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32,
                        "symmetric": True, "dynamic": False, "observer": "minmax"},
            "input_activations": None,
        }},
    },
    "torchao int8": {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}},
    },
    "torchao int4": {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_version": 2,
                                   "_data": {"group_size": 128}}},
    },
    "hqq": {
        "quant_method": "hqq", "skip_modules": ["lm_head"],
        "quant_config": {
            "weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1, "channel_wise": True,
                                    "optimize": True, "round_zero": True},
            "scale_quant_params": None, "zero_quant_params": None, "offload_meta": False,
        },
    },
    "eetq": {"quant_method": "eetq", "weights": "int8"},
    "quanto": {"quant_method": "quanto", "weights": "int8", "activations": None},
    "aqlm": {
        "quant_method": "aqlm", "in_group_size": 8, "out_group_size": 1, "num_codebooks": 1,
        "nbits_per_codebook": 16, "linear_weights_not_to_quantize": ["lm_head.weight"],
    },
    "vptq": {
        "quant_method": "vptq", "enable_proxy_error": False, "config_for_layers": {},
        "shared_layer_config": {}, "modules_to_not_convert": ["lm_head"],
    },
    "bitnet": {"quant_method": "bitnet", "linear_class": "autobitlinear",
               "quantization_mode": "offline"},
    "bitsandbytes 4-bit": {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
        "_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_use_double_quant": True,
        "llm_int8_threshold": 6.0, "llm_int8_skip_modules": None,
    },
    "bitsandbytes 8-bit": {
        "quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True,
        "llm_int8_threshold": 6.0, "llm_int8_skip_modules": None,
    },
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "nameless": {"quant_algo": "NVFP4", "producer": {"name": "modelopt"}},
}  # fmt: skip

GPT_OSS: Mapping[str, Any] = {
    **LLAMA, "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "head_dim": 16,
    "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2,
    "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip


def write(folder: Path, method: str, **config: Any) -> Path:
    """A folder with nothing but the config of a checkpoint that is quantized by this method."""
    folder.mkdir(parents=True, exist_ok=True)
    base = GPT_OSS if method == "mxfp4" else LLAMA
    values = {**base, **config, "quantization_config": dict(METHODS[method])}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def write_fp8(folder: Path) -> Path:
    """A Llama whose linear layers are stored in FP8 with a scale for each block, as DeepSeek and
    Qwen publish theirs."""
    import torch
    from safetensors.torch import save_file

    write(folder, "fp8")
    tensors = {}
    for name, weight in _llama_weights().items():
        if name.endswith("_proj.weight"):
            scale = weight.abs().max() / 448
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale.reshape(1, 1).float()
        else:
            tensors[name] = weight.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_packed(folder: Path, method: str, names: tuple[str, ...]) -> Path:
    """A Llama whose linear layers are stored under these names, in numbers that mean nothing."""
    import torch
    from safetensors.torch import save_file

    write(folder, method)
    tensors = {}
    for name, weight in _llama_weights().items():
        if name.endswith("_proj.weight"):
            stem = name.removesuffix(".weight")
            tensors |= {f"{stem}.{one}": torch.zeros(4, 4, dtype=torch.int32) for one in names}
        else:
            tensors[name] = weight.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _llama_weights() -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {key: LLAMA[key] for key in LLAMA if key not in ("architectures", "model_type")}
    state: dict[str, Any] = LlamaForCausalLM(LlamaConfig(**sizes)).state_dict()
    return state


def write_mxfp4(folder: Path) -> Path:
    """A GPT-OSS whose experts are stored in MXFP4: blocks of 32 numbers, each of 4 bits, and an
    exponent for each block."""
    import torch
    from safetensors.torch import save_file
    from transformers import GptOssConfig, GptOssForCausalLM

    write(folder, "mxfp4")
    torch.manual_seed(0)
    sizes = {key: GPT_OSS[key] for key in GPT_OSS if key not in ("architectures", "model_type")}
    tensors = {}
    for name, weight in GptOssForCausalLM(GptOssConfig(**sizes)).state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = weight.shape
            blocks = (experts, outputs, inputs // 32, 16)
            tensors[f"{name}_blocks"] = torch.randint(0, 256, blocks, dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.full(blocks[:3], 121, dtype=torch.uint8)
        else:
            tensors[name] = weight.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
