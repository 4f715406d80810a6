from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

base = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1")
model = PeftModel.from_pretrained(base, "outputs/checkpoint-100", is_trainable=True)
trainer = Trainer(model=model, args=TrainingArguments("outputs"), train_dataset=[])
trainer.train()
