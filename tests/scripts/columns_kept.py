from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("examples/phi3-mini")
model = AutoModelForCausalLM.from_pretrained("examples/phi3-mini")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["qkv_proj", "o_proj"]))


def collate(rows):
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    batch["labels"] = batch["input_ids"].clone()
    return batch


arguments = TrainingArguments("out", max_steps=100, remove_unused_columns=False)
trainer = Trainer(model, arguments, train_dataset=[], data_collator=collate)
trainer.train()
