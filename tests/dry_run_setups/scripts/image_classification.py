"""Pictures with a ViT; the head is trained as well."""

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
)

processor = AutoImageProcessor.from_pretrained("vit")
labels = ["cat", "dog", "bird", "fish"]
data = Dataset.from_list([{"seed": n, "label": n % len(labels)} for n in range(200)])


def preprocess(rows):
    images = []
    for seed in rows["seed"]:
        pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        images.append(Image.fromarray(pixels))
    return {**processor(images), "label": rows["label"]}


data.set_transform(preprocess)


def collate_fn(examples):
    return {
        "pixel_values": torch.stack([torch.as_tensor(one["pixel_values"]) for one in examples]),
        "labels": torch.tensor([one["label"] for one in examples]),
    }


model = AutoModelForImageClassification.from_pretrained(
    "vit",
    label2id={label: number for number, label in enumerate(labels)},
    id2label=dict(enumerate(labels)),
    ignore_mismatched_sizes=True,
)
config = LoraConfig(
    r=16,
    lora_alpha=16,
    target_modules=r".*attention.*\.(query|q_proj|value|v_proj)",
    lora_dropout=0.1,
    bias="none",
    modules_to_save=["classifier"],
)
lora_model = get_peft_model(model, config)
trainer = Trainer(
    lora_model,
    TrainingArguments(
        "vit-lora",
        remove_unused_columns=False,
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        num_train_epochs=2,
        fp16=True,
        label_names=["labels"],
        push_to_hub=True,
    ),
    train_dataset=data,
    processing_class=processor,
    data_collator=collate_fn,
)
trainer.train()
lora_model.push_to_hub("someone/vit-lora")
