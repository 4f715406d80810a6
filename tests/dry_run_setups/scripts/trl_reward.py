"""A reward model."""

from datasets import load_dataset
from peft import LoraConfig, TaskType
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

tokenizer = AutoTokenizer.from_pretrained("llama")
model = AutoModelForSequenceClassification.from_pretrained(
    "llama", num_labels=1, dtype="bfloat16"
)
model.config.pad_token_id = tokenizer.pad_token_id

dataset = load_dataset("json", data_files="data/preferences.jsonl", split="train")
trainer = RewardTrainer(
    model=model,
    args=RewardConfig(
        output_dir="reward",
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        num_train_epochs=1,
        bf16=True,
        max_length=128,
    ),
    train_dataset=dataset,
    processing_class=tokenizer,
    peft_config=LoraConfig(
        r=8,
        lora_alpha=16,
        task_type=TaskType.SEQ_CLS,
        target_modules=["q_proj", "v_proj"],
    ),
)
trainer.train()
trainer.save_model("reward/final")
