from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
config = LoraConfig(target_modules=["q_proj", "v_proj"])
model = get_peft_model(model)
print(config, model)
