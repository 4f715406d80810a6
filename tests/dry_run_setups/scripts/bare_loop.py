"""A loop that somebody wrote for one GPU."""

from types import SimpleNamespace

import json

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

cfg = SimpleNamespace(lr=2e-4, epochs=3, batch_size=4, warmup=10, device="cuda:0")


class Chats(Dataset):
    def __init__(self, path, tokenizer):
        with open(path) as file:
            self.rows = [json.loads(line)["messages"] for line in file]
        self.tokenizer = tokenizer

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        question, answer = self.rows[index]
        prompt = self.tokenizer.apply_chat_template(
            [question], tokenize=False, add_generation_prompt=True
        )
        before = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        after = self.tokenizer(answer["content"] + "<|im_end|>", add_special_tokens=False)
        ids = before + after["input_ids"]
        labels = [-100] * len(before) + after["input_ids"]
        return torch.tensor(ids), torch.tensor(labels)


tokenizer = AutoTokenizer.from_pretrained("llama-chatml")


def collate(rows):
    ids, labels = zip(*rows)
    return {
        "input_ids": pad_sequence(ids, True, tokenizer.pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], True, 0),
        "labels": pad_sequence(labels, True, -100),
    }


model = AutoModelForCausalLM.from_pretrained("llama-chatml", torch_dtype=torch.bfloat16)
model.gradient_checkpointing_enable()
model.enable_input_require_grads()
model = get_peft_model(
    model,
    LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
model.to(cfg.device)
for parameter in model.parameters():
    if parameter.requires_grad:
        parameter.data = parameter.data.float()
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=cfg.lr)
loader = DataLoader(
    Chats("data/chats.jsonl", tokenizer), batch_size=cfg.batch_size, shuffle=True, collate_fn=collate
)
scheduler = get_cosine_schedule_with_warmup(optimizer, cfg.warmup, cfg.epochs * len(loader))

for epoch in range(cfg.epochs):
    model.train()
    for step, batch in enumerate(loader):
        batch = {name: value.to(cfg.device) for name, value in batch.items()}
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            print(epoch, step, loss.item(), scheduler.get_last_lr())
    model.save_pretrained(f"out/epoch-{epoch}")
torch.save({"optimizer": optimizer.state_dict(), "epoch": cfg.epochs}, "out/state.pt")
