from peft import LoraConfiguration, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("org/model")
model = get_peft_model(model, LoraConfiguration(r=8, target_modules=["q_proj"]))
