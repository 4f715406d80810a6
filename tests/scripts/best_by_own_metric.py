from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
)


def compute_metrics(prediction):
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(right.mean()), "right": int(right.sum())}


model = AutoModelForSequenceClassification.from_pretrained("examples/phi3-mini", num_labels=2)
model = get_peft_model(
    model, LoraConfig(r=8, target_modules=["qkv_proj", "o_proj"], task_type="SEQ_CLS")
)
arguments = TrainingArguments(
    "out",
    save_strategy="epoch",
    eval_strategy="epoch",
    metric_for_best_model="accuracy",
    load_best_model_at_end=True,
)
Trainer(
    model,
    arguments,
    train_dataset=[],
    eval_dataset=[],
    compute_metrics=compute_metrics,
    callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
)
