"""Qwen2-VL with a collator of its own, images of all sizes made on the spot; no torchvision."""

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Trainer,
    TrainingArguments,
)

tokenizer = AutoTokenizer.from_pretrained("qwen2-vl")
images = Qwen2VLImageProcessor.from_pretrained("qwen2-vl")


class Pictures(Dataset):
    def __len__(self):
        return 200

    def __getitem__(self, index):
        size = (60 + index % 5 * 30, 80, 3)
        pixels = np.random.default_rng(index).integers(0, 255, size, dtype=np.uint8)
        return {"image": Image.fromarray(pixels), "answer": f"picture number {index}"}


def collate(rows):
    vision = images(images=[row["image"] for row in rows], return_tensors="pt")
    texts = []
    for row, grid in zip(rows, vision["image_grid_thw"], strict=True):
        places = "<image>" * int(grid.prod() // images.merge_size**2)
        prompt = f"<|im_start|>user\n[INST]{places}[/INST]What is this?<|im_end|>\n"
        texts.append(f"{prompt}<|im_start|>assistant\n{row['answer']}<|im_end|>")
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    picture = tokenizer.convert_tokens_to_ids("<image>")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    batch["labels"] = labels.masked_fill(labels == picture, -100)
    batch["mm_token_type_ids"] = (batch["input_ids"] == picture).long()
    return {**batch, **vision}


model = Qwen2VLForConditionalGeneration.from_pretrained(
    "qwen2-vl", torch_dtype=torch.bfloat16, attn_implementation="flash_attention_2"
)
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
config = LoraConfig(
    r=16,
    lora_alpha=32,
    target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)",
    task_type="CAUSAL_LM",
)
model = get_peft_model(model, config)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="qwen-lora",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-4,
        max_steps=100,
        bf16=True,
        remove_unused_columns=False,
    ),
    train_dataset=Pictures(),
    data_collator=collate,
)
trainer.train()
trainer.save_model()
