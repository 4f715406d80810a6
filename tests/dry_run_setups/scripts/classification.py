"""Text classification with a BERT, metrics and the best model at the end."""

import numpy as np
from datasets import load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

checkpoint = "bert"
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
dataset = load_dataset("json", data_files="data/reviews.jsonl", split="train")
dataset = dataset.train_test_split(test_size=0.2, seed=1)


def preprocess(rows):
    return tokenizer(rows["text"], truncation=True, max_length=64)


tokenized = dataset.map(preprocess, batched=True)
model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
model = get_peft_model(
    model,
    LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=8,
        lora_alpha=16,
        lora_dropout=0.1,
        target_modules=["query", "value"],
    ),
)


def compute_metrics(predicted):
    logits, labels = predicted
    return {"accuracy": float((np.argmax(logits, axis=-1) == labels).mean())}


trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="classifier",
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        num_train_epochs=2,
        weight_decay=0.01,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    ),
    train_dataset=tokenized["train"],
    eval_dataset=tokenized["test"],
    processing_class=tokenizer,
    data_collator=DataCollatorWithPadding(tokenizer=tokenizer),
    compute_metrics=compute_metrics,
)
trainer.train()
print(trainer.evaluate()["eval_accuracy"])
model.save_pretrained("classifier/best")
