"""What the examples of rules about a training command begin with."""

from __future__ import annotations

#: A small Llama with adapters: ``model``; the names that scripts need are imported.
MODEL = """\
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments, default_data_collator
)

config = LlamaConfig(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
)
model = get_peft_model(
    AutoModelForCausalLM.from_config(config),
    LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
"""
