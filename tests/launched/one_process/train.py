from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("org/model", device_map="auto")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
arguments = TrainingArguments("out")
trainer = Trainer(model=model, args=arguments, train_dataset=[])
trainer.train()
