from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("org/model")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
trainer = Trainer(model=model, args=TrainingArguments("out", bf16=True), train_dataset=[])
trainer.train()
merged = trainer.model.merge_and_unload()
merged.save_pretrained("merged")
