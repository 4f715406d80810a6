from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
rows = load_dataset("allenai/c4", "en", split="train", streaming=True).shuffle(seed=1)
trainer = Trainer(model=model, args=TrainingArguments("out"), train_dataset=rows)
trainer.train()
