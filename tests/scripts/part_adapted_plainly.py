"""The same without a task type: PEFT's plain wrapper takes any module."""

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("tests/folders/base_without_head")
config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
model.model = get_peft_model(model.model, config)
