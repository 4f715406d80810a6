"""The same in the right order; read by tests, never run."""

import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM


def build(name, with_prompt):
    model = AutoModelForCausalLM.from_pretrained(name)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
    if with_prompt:
        model = model.merge_and_unload()
        prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16)
        model = get_peft_model(model, prompt)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    return model, optimizer
