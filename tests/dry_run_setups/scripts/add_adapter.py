"""The model's own add_adapter, without PEFT's wrapper."""

from datasets import load_dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

model = AutoModelForCausalLM.from_pretrained("llama")
model.add_adapter(
    LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    adapter_name="chat",
)
model.set_adapter("chat")
tokenizer = AutoTokenizer.from_pretrained("llama")


def tokenize(rows):
    texts = [tokenizer.apply_chat_template(one, tokenize=False) for one in rows["messages"]]
    return tokenizer(texts, truncation=True, max_length=256)


data = load_dataset("json", data_files="data/chats.jsonl", split="train")
data = data.map(tokenize, batched=True, remove_columns=["messages"])
trainer = Trainer(
    model=model,
    args=TrainingArguments("out", per_device_train_batch_size=4, learning_rate=2e-4),
    train_dataset=data,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
model.save_pretrained("out/adapter")
