from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
rows = load_dataset("json", data_files="../data/rows/chats.jsonl", split="train")
rows = rows.shuffle(seed=0).select(range(1000))
trainer = Trainer(model, TrainingArguments("outputs"), train_dataset=rows)
trainer.train()
