import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput

from .configuration_tiny import TinyConfig

try:
    from flash_attention_that_is_not_installed import attend
except ImportError:
    attend = None


class TinyRotary(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.scale = 1.0
        if isinstance(config.rope_scaling, dict):
            self.scale = config.rope_scaling.get("factor", 1.0)
        steps = torch.arange(0, config.hidden_size, 2) / config.hidden_size
        self.register_buffer("speeds", config.hidden_size**-steps)

    def forward(self, x):
        where = torch.arange(x.shape[1], device=x.device) / self.scale
        angles = where[:, None] * self.speeds.to(x.device, torch.float32)
        sin, cos = angles.sin().to(x.dtype), angles.cos().to(x.dtype)
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)


class TinyLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.rotary = TinyRotary(config)
        self.qkv_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x):
        turned = self.rotary(self.qkv_proj(x))
        mixed = turned.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[None, :, None]
        return x + self.o_proj(torch.tanh(mixed))


class TinyForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = TinyConfig
    base_model_prefix = ""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([TinyLayer(config) for _ in range(config.num_hidden_layers)])
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(0, 0.2)

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}

    def forward(
        self, input_ids=None, inputs_embeds=None, attention_mask=None, labels=None, **kwargs
    ):
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            scores = logits[:, :-1].flatten(0, 1)
            loss = nn.functional.cross_entropy(scores, labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
