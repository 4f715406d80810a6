"""LLaVA with a collator of its own, images made on the spot."""

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.utils.data import Dataset
from transformers import AutoProcessor, LlavaForConditionalGeneration, Trainer, TrainingArguments

processor = AutoProcessor.from_pretrained("llava")


class Pictures(Dataset):
    def __len__(self):
        return 200

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 255, (300, 400, 3), dtype=np.uint8)
        return {"image": Image.fromarray(pixels), "answer": f"picture number {index}"}


def collate(rows):
    prompt = "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
    texts = [f"{prompt}{row['answer']}<|im_end|>" for row in rows]
    batch = processor(
        text=texts, images=[row["image"] for row in rows], padding=True, return_tensors="pt"
    )
    labels = batch["input_ids"].clone()
    labels[labels == processor.tokenizer.pad_token_id] = -100
    labels[labels == processor.tokenizer.convert_tokens_to_ids("<image>")] = -100
    batch["labels"] = labels
    return batch


model = LlavaForConditionalGeneration.from_pretrained(
    "llava", torch_dtype=torch.bfloat16, device_map="auto"
)
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
        output_dir="llava-lora",
        per_device_train_batch_size=2,
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
processor.save_pretrained("llava-lora")
