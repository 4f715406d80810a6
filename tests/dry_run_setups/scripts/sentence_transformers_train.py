"""An embedding model with an adapter."""

from datasets import Dataset
from peft import LoraConfig, TaskType
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import MultipleNegativesRankingLoss

model = SentenceTransformer("embedder")
peft_config = LoraConfig(
    task_type=TaskType.FEATURE_EXTRACTION,
    inference_mode=False,
    r=16,
    lora_alpha=32,
    lora_dropout=0.1,
    target_modules=["query", "value"],
)
model.add_adapter(peft_config)

rows = [
    {"anchor": f"What is number {n}?", "positive": f"It is the number {n}."} for n in range(300)
]
data = Dataset.from_list(rows).train_test_split(test_size=50)
loss = MultipleNegativesRankingLoss(model)
args = SentenceTransformerTrainingArguments(
    output_dir="embedder-lora",
    num_train_epochs=1,
    per_device_train_batch_size=8,
    learning_rate=2e-4,
    warmup_steps=4,
    bf16=True,
    eval_strategy="steps",
    eval_steps=20,
    logging_steps=10,
)
trainer = SentenceTransformerTrainer(
    model=model,
    args=args,
    train_dataset=data["train"],
    eval_dataset=data["test"],
    loss=loss,
)
trainer.train()
model.save_pretrained("embedder-lora/final")
