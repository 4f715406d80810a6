from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B")


def tokenized(rows):
    batch = tokenizer(rows["text"], padding="max_length", truncation=True, max_length=512)
    batch["labels"] = batch["input_ids"].copy()
    return batch


rows = load_dataset("json", data_files="rows.jsonl", split="train")
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B"),
    LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
trainer = Trainer(
    model,
    TrainingArguments("outputs"),
    train_dataset=rows.map(tokenized, batched=True, remove_columns=["text"]),
)
trainer.train()
