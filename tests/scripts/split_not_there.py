from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

rows = load_dataset("json", data_files="rows.jsonl", split="train")
held_out = load_dataset("json", data_files="rows.jsonl", split="validation")
model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
Trainer(model, TrainingArguments("outputs"), train_dataset=rows, eval_dataset=held_out).train()
