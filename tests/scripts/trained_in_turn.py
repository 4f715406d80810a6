from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
model = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1")
model = get_peft_model(model, config, adapter_name="first")
model.add_adapter("second", config)
trainer = Trainer(model=model, args=TrainingArguments("out"), train_dataset=[])
model.set_adapter("first")
trainer.train()
model.set_adapter("second")
trainer.train()
