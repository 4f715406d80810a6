from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("facebook/opt-125m")
rows = load_dataset("json", data_files="rows.jsonl")
if "test" not in rows:
    rows = rows["train"].train_test_split(test_size=0.1)
rows = rows.map(lambda row: tokenizer(row["text"]), remove_columns=rows["train"].column_names)
more = load_dataset("json", data_files="rows.jsonl", split="train").train_test_split(0.1)
model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
Trainer(model, TrainingArguments("outputs"), train_dataset=rows["train"]).train()
