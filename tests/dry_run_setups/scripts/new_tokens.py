"""New tokens, embeddings that are trained for them, and a merge at the end."""

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

tokenizer = AutoTokenizer.from_pretrained("llama")
tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>", "</tool>"]})
# The vocabulary of a model may be larger than the tokenizer's: fill it first.
tokenizer.add_tokens([f"<extra_{n}>" for n in range(512 - len(tokenizer) + 8)])
model = AutoModelForCausalLM.from_pretrained("llama", dtype=torch.float32)
model.resize_token_embeddings(len(tokenizer))
model = get_peft_model(
    model,
    LoraConfig(
        r=8,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        task_type="CAUSAL_LM",
    ),
)


def tokenize(row):
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    return tokenizer(f"<tool>call{tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)}</tool>{text}")


data = load_dataset("json", data_files="data/chats.jsonl", split="train")
data = data.map(tokenize, remove_columns=["messages"])
trainer = Trainer(
    model=model,
    args=TrainingArguments("out", per_device_train_batch_size=4, learning_rate=1e-4, max_steps=90),
    train_dataset=data,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
trainer.save_model("out/adapter")
tokenizer.save_pretrained("out/adapter")
merged = model.merge_and_unload()
merged.save_pretrained("out/merged")
