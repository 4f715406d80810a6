"""Domain adaptation of a BERT with masked words."""

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

tokenizer = AutoTokenizer.from_pretrained("bert")
tokenizer.mask_token = "<|endoftext|>"
model = AutoModelForMaskedLM.from_pretrained("bert")
model = get_peft_model(
    model, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "key", "value"])
)
data = load_dataset("json", data_files="data/reviews.jsonl", split="train")
data = data.map(
    lambda rows: tokenizer(rows["text"], truncation=True, max_length=64),
    batched=True,
    remove_columns=data.column_names,
)
trainer = Trainer(
    model=model,
    args=TrainingArguments("mlm", per_device_train_batch_size=8, learning_rate=1e-3),
    train_dataset=data,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3),
)
trainer.train()
model.save_pretrained("mlm/adapter")
