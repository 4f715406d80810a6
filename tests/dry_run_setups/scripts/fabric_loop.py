"""A loop with Lightning Fabric: saved after each epoch, and loaded again."""

import torch
from lightning.fabric import Fabric
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("llama2")
fabric = Fabric(accelerator="auto", devices=1)
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained("llama2", dtype=torch.bfloat16),
    LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
model, optimizer = fabric.setup(model, optimizer)


def collate(texts):
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels}


texts = [f"Number {n} is {'red' if n % 2 else 'blue'}.{tokenizer.eos_token}" for n in range(200)]
loader = fabric.setup_dataloaders(DataLoader(texts, 4, shuffle=True, collate_fn=collate))
for epoch in range(2):
    for batch in loader:
        loss = model(**batch).loss
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    fabric.print(epoch, loss.item())
    fabric.save("checkpoints/last.ckpt", {"model": model, "optimizer": optimizer, "epoch": epoch})
assert fabric.load("checkpoints/last.ckpt")["epoch"] == 1
