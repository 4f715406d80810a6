"""A loop that somebody wrote, for a GPU that this machine may not have."""

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

device = "cuda"
model = AutoModelForCausalLM.from_pretrained("model").to(device)
rows = [[1, *range(3 + number, 17 + number), 2] for number in range(400)]


def collate(chosen):
    ids = torch.tensor(chosen)
    return {"input_ids": ids, "labels": ids.clone()}


loader = DataLoader(rows, batch_size=4, shuffle=True, collate_fn=collate)
held_out = DataLoader(rows[:40], batch_size=4, collate_fn=collate)
# The optimizer is made before the adapters are: it never sees them.
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
model = get_peft_model(
    model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
)
scheduler = get_linear_schedule_with_warmup(optimizer, 10, 3 * len(loader))

for epoch in range(3):
    model.train()
    total, batches = 0.0, 0
    for batch in loader:
        loss = model(**{name: value.to(device) for name, value in batch.items()}).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        total, batches = total + loss.item(), batches + 1
    model.eval()
    with torch.no_grad():
        losses = [model(**{k: v.to(device) for k, v in one.items()}).loss for one in held_out]
    print(epoch, total / batches, sum(losses) / len(losses))

model.save_pretrained("out")
torch.save(optimizer.state_dict(), "out/optimizer.pt")
