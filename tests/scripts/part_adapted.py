"""The decoder of the model gets the adapters, as a part of the program's own module would."""

from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("tests/folders/base_without_head")
config = LoraConfig(r=8, task_type=TaskType.CAUSAL_LM, target_modules=["q_proj", "v_proj"])
model.model = get_peft_model(model.model, config)
