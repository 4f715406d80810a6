"""Adapters that the installed PEFT has saved, as they are and broken in the ways of the field.

Each factory returns what the examples of rules call: a base model's folder, and the options of
``lora_doctor.check`` with the adapter.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: Removed when the tests end.
_PLACE = tempfile.TemporaryDirectory(prefix="lora-doctor-tests-")

Made = tuple[str, dict[str, Any]]


def new_folder(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_PLACE.name))


def llama(**changes: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **changes})).eval()


def vit() -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            image_size=32, patch_size=8, num_labels=2,
        )
    ).eval()  # fmt: skip


def saved(model: Any, config: Any, base: Path | None = None) -> tuple[Path, Path]:
    """Folders of the base model and of its adapter; the adapter's values are random, none zero."""
    import peft
    import torch

    if base is None:
        base = new_folder("base")
        model.save_pretrained(str(base))
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for value in wrapped.parameters():
            if value.requires_grad:
                value.normal_(std=0.2)
    folder = new_folder("adapter")
    wrapped.save_pretrained(str(folder))
    return base, folder


def lora_config(**changes: Any) -> Any:
    import peft

    values = {"r": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**{**values, **changes})


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(str(folder / "adapter_model.safetensors")))


def rewrite(
    folder: Path, change: Callable[[dict[str, Any]], Mapping[str, Any]], **config: Any
) -> Path:
    """The adapter with other tensors, and other entries in its config."""
    from safetensors.torch import save_file

    tensors = dict(change(tensors_of(folder)))
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def renamed(folder: Path, rename: Callable[[str], str], **config: Any) -> Path:
    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        return {rename(name): value for name, value in tensors.items()}

    return rewrite(folder, change, **config)


def unchanged(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors


def made(folders: tuple[Path, Path]) -> Made:
    base, adapter = folders
    return str(base), {"adapter": str(adapter)}


# --- for the rules' examples ----------------------------------------------------------------------


def lora() -> Made:
    return made(saved(llama(), lora_config()))


def pickled(folder: Path) -> Path:
    """The adapter as PEFT saves it with ``safe_serialization=False``."""
    import torch

    torch.save(tensors_of(folder), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    return folder


def in_a_pickle() -> Made:
    base, adapter = saved(llama(), lora_config())
    return made((base, pickled(adapter)))


def of_a_distributed_model() -> Made:
    base, adapter = saved(llama(), lora_config())
    renamed(adapter, lambda name: name.replace("base_model.model.", "base_model.model.module.", 1))
    return made((base, adapter))


def vit_config(**changes: Any) -> Any:
    import peft

    values = {"r": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
    return peft.LoraConfig(**{**values, **changes})


def with_old_names(adapter: Path) -> None:
    """A ViT's adapter as transformers 4 named its layers."""

    def old(name: str) -> str:
        name = name.replace("vit.layers.", "vit.encoder.layer.")
        name = name.replace("attention.q_proj", "attention.attention.query")
        return name.replace("attention.v_proj", "attention.attention.value")

    renamed(adapter, old, target_modules=["query", "value"])


def vit_of_before_transformers_5() -> Made:
    base, adapter = saved(vit(), vit_config())
    with_old_names(adapter)
    return made((base, adapter))


def vit_with_its_head() -> Made:
    names = ("q_proj", "v_proj") if hasattr(vit().vit, "layers") else ("query", "value")
    return made(saved(vit(), vit_config(target_modules=list(names))))


def with_half_of_its_layers() -> Made:
    base, adapter = saved(llama(), lora_config())
    rewrite(adapter, lambda found: {n: v for n, v in found.items() if ".layers.0." in n})
    return made((base, adapter))


def of_another_rank() -> Made:
    base, adapter = saved(llama(), lora_config())
    rewrite(adapter, unchanged, r=16)
    return made((base, adapter))


def of_a_longer_vocabulary() -> Made:
    base = new_folder("base")
    llama().save_pretrained(str(base))
    config = lora_config(modules_to_save=["embed_tokens", "lm_head"])
    return made(saved(llama(vocab_size=100), config, base))


def with_a_number_that_is_none() -> Made:
    base, adapter = saved(llama(), lora_config())

    def spoilt(found: dict[str, Any]) -> dict[str, Any]:
        next(iter(found.values()))[0, 0] = float("nan")
        return found

    rewrite(adapter, spoilt)
    return made((base, adapter))


def of_zero_stage_3() -> Made:
    base, adapter = saved(llama(), lora_config())
    rewrite(adapter, lambda found: {name: value.new_empty(0) for name, value in found.items()})
    return made((base, adapter))


def of_another_class() -> Made:
    base, adapter = saved(llama(), lora_config())
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}
    rewrite(adapter, unchanged, auto_mapping=mapping, task_type=None)
    return made((base, adapter))


def with_a_mistyped_key() -> Made:
    base, adapter = saved(llama(), lora_config())
    rewrite(adapter, unchanged, lora_alfa=32)
    return made((base, adapter))


def with_the_whole_state_dict() -> Made:
    """What a script of one's own saves: the base model's weights beside those of the adapter."""
    import peft
    from safetensors.torch import save_file

    base, adapter = saved(llama(), lora_config())
    whole = peft.PeftModel.from_pretrained(llama(), str(adapter)).state_dict()
    tensors = {name.replace(".default.", "."): value.clone() for name, value in whole.items()}
    save_file(tensors, str(adapter / "adapter_model.safetensors"), metadata={"format": "pt"})
    return made((base, adapter))


def prompt_of_a_wider_model() -> Made:
    import peft

    base = new_folder("base")
    llama().save_pretrained(str(base))
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    return made(saved(llama(hidden_size=64), config, base))


def classifier() -> Made:
    """Its config lists `classifier` and `score` in modules_to_save: PEFT adds both by itself."""
    import transformers

    config = llama().config
    config.pad_token_id = 0
    model = transformers.LlamaForSequenceClassification(config).eval()
    return made(saved(model, lora_config(task_type="SEQ_CLS")))


def in_shards() -> Made:
    """The weights in two files and an index, as large models are saved."""
    from safetensors.torch import save_file

    base, adapter = saved(llama(), lora_config())
    tensors = tensors_of(adapter)
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"adapter_model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, str(adapter / file))
        weight_map.update(dict.fromkeys(part, file))
    (adapter / "adapter_model.safetensors").unlink()
    index = adapter / "adapter_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return made((base, adapter))


def of_another_architecture() -> Made:
    import transformers

    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    base = new_folder("base")
    llama().save_pretrained(str(base))
    return made(saved(model, lora_config(target_modules=["c_attn"], fan_in_fan_out=True), base))


def head_in_float32(dtype: str = "bfloat16") -> Made:
    """A script that loads an adapter with a head trained in float32, saving memory as it does."""
    base, folder = saved(llama(), lora_config(modules_to_save=["lm_head"]))
    script = new_folder("script") / "ask.py"
    script.write_text(
        "import torch\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}", dtype=torch.{dtype})\n'
        f'model = PeftModel.from_pretrained(base, "{folder}", low_cpu_mem_usage=True)\n'
        "model.generate(**inputs)\n",
        "utf-8",
    )
    return str(script), {}


def head_in_the_dtype_of_the_model() -> Made:
    return head_in_float32("float32")
