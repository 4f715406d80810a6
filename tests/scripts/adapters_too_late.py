"""A set-up in the wrong order; read by tests, never run."""

import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM


def build(name):
    model = AutoModelForCausalLM.from_pretrained(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16)
    model = get_peft_model(model, prompt)
    return model, optimizer
