"""Train on with an adapter that exists."""

import torch
from datasets import load_dataset
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

base = AutoModelForCausalLM.from_pretrained("llama", dtype=torch.bfloat16)
model = PeftModel.from_pretrained(base, "adapter", is_trainable=True)
tokenizer = AutoTokenizer.from_pretrained("llama")
data = load_dataset("json", data_files="data/chats.jsonl", split="train")
data = data.map(
    lambda row: tokenizer(tokenizer.apply_chat_template(row["messages"], tokenize=False)),
    remove_columns=["messages"],
)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="more", learning_rate=1e-4, per_device_train_batch_size=4, max_steps=100
    ),
    train_dataset=data,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
model.save_pretrained("more")
