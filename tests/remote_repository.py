"""A model repository with code of its own, written after the pattern of Phi-4-multimodal.

The head class asserts that its config describes two built-in adapters and calls
``get_peft_model`` with ``CAUSAL_LM`` on its headless inner model in ``__init__``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

CONFIGURATION = """
from transformers import PretrainedConfig

class TinyMMConfig(PretrainedConfig):
    model_type = "tinymm"

    def __init__(self, vocab_size=64, hidden_size=16, num_hidden_layers=2, vision_lora=None,
                 speech_lora=None, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.vision_lora = vision_lora
        self.speech_lora = speech_lora
        super().__init__(**kwargs)
"""

MODELING = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

class TinyMMPreTrainedModel(PreTrainedModel):
    config_class = TinyMMConfig
    base_model_prefix = "model"

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(0, 0.2)

class TinyMMLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.qkv_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x):
        mixed = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[None, :, None]
        return x + self.o_proj(torch.tanh(self.qkv_proj(mixed)))

class TinyMMModel(TinyMMPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TinyMMLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            x = layer(x)
        return BaseModelOutput(last_hidden_state=x)

class TinyMMForCausalLM(TinyMMPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = TinyMMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

        assert getattr(config, "vision_lora", None) is not None
        assert getattr(config, "speech_lora", None) is not None
        from peft import LoraConfig, get_peft_model
        vision = LoraConfig(task_type="CAUSAL_LM", target_modules=config.vision_lora["layer"],
                            r=config.vision_lora["r"], lora_alpha=4)
        speech = LoraConfig(task_type="CAUSAL_LM", target_modules=config.speech_lora["layer"],
                            r=config.speech_lora["r"], lora_alpha=4)
        peft_model = get_peft_model(self.model, vision, adapter_name="vision")
        WRAP_AGAIN
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, labels=None,
                return_dict=None, **kwargs):
        logits = self.lm_head(self.model(input_ids, inputs_embeds).last_hidden_state)
        loss = None
        if labels is not None:
            scores = logits[:, :-1].flatten(0, 1)
            loss = nn.functional.cross_entropy(scores, labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
"""

WRAP_AGAIN = {
    "get_peft_model twice": 'get_peft_model(self.model, speech, adapter_name="speech")',
    "add_adapter": 'peft_model.add_adapter("speech", speech)',
}


def write_repository(folder: Path, layout: str, wrap_again: str, *, task_type: bool = True) -> None:
    """Write it into a new folder, in ``one file`` or ``split files``; no weights.

    Without ``task_type`` the wrapper asks nothing of the inner model, and loading works everywhere.
    """
    folder.mkdir()
    modeling = MODELING.replace("WRAP_AGAIN", wrap_again)
    if not task_type:
        modeling = modeling.replace('task_type="CAUSAL_LM", ', "")
    if layout == "one file":
        (folder / "tinymm.py").write_text(CONFIGURATION + modeling)
        config_file = model_file = "tinymm"
    else:
        config_file, model_file = "configuration_tinymm", "modeling_tinymm"
        (folder / "configuration_tinymm.py").write_text(CONFIGURATION)
        (folder / "modeling_tinymm.py").write_text(
            "from .configuration_tinymm import TinyMMConfig\n" + modeling
        )
    lora = {"layer": r"layers.*(qkv_proj|o_proj)", "r": 2}
    config = {
        "model_type": "tinymm", "architectures": ["TinyMMForCausalLM"], "vocab_size": 64,
        "hidden_size": 16, "num_hidden_layers": 2, "vision_lora": lora, "speech_lora": lora,
        "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
        "auto_map": {"AutoConfig": f"{config_file}.TinyMMConfig",
                     "AutoModelForCausalLM": f"{model_file}.TinyMMForCausalLM"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def keep_modules_apart(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Code of repositories is copied into ``folder``, where nobody else's is: in this process, and
    in children that are started from here on."""
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(folder))
    monkeypatch.setenv("HF_MODULES_CACHE", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    # What is imported from there goes with the test: the package knows its folder, and no other.
    monkeypatch.setitem(sys.modules, "transformers_modules", sys)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


def load(folder: Path) -> Any:
    """Built as transformers builds it, the code of the repository run; random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    return AutoModelForCausalLM.from_config(config, trust_remote_code=True)


def add_weights(folder: Path) -> None:
    """Random weights into the folder, in one file of safetensors."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = {name: value.clone() for name, value in load(folder).state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load_weights(folder: Path, **options: Any) -> Any:
    """``from_pretrained`` of the folder on the CPU."""
    from transformers import AutoModelForCausalLM

    options.setdefault("device_map", {"": "cpu"})
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)
