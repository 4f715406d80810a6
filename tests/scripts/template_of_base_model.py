from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("tests/folders/vocabulary_padded")
model = AutoModelForCausalLM.from_pretrained("tests/folders/vocabulary_padded")
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))


def formatted(row):
    return {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)}


rows = load_dataset("json", data_files="rows.jsonl", split="train").map(formatted)
trainer = Trainer(model, TrainingArguments("outputs"), train_dataset=rows)
trainer.train()
