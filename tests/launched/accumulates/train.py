from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("org/model")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
arguments = TrainingArguments("out", gradient_accumulation_steps=4, bf16=True)
Trainer(model=model, args=arguments, train_dataset=[]).train()
