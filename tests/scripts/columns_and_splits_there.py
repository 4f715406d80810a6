from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("facebook/opt-125m")
rows = Dataset.from_list([{"text": "one", "id": 1}, {"text": "two", "id": 2}])
rows = rows.rename_column("text", "words").map(lambda row: tokenizer(row["words"]))
rows = rows.remove_columns(["words", "id"])
files = {"train": "rows.jsonl", "validation": "rows.jsonl"}
splits = load_dataset("json", data_files=files)
held_out = load_dataset("json", data_files=files, split="train+validation[:10%]")
print(splits["validation"], rows["input_ids"])
model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
Trainer(model, TrainingArguments("outputs"), train_dataset=rows, eval_dataset=held_out).train()
