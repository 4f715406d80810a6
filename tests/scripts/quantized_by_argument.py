"""Loads in 8 bits as scripts for transformers 4 do."""

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("org/name", load_in_8bit=True, device_map="auto")
other = AutoModelForCausalLM.from_pretrained("org/name", load_in_8bit=False)
model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
