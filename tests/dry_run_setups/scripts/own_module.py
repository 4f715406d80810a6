"""A module of one's own around an encoder that is made of a config, with the width written down."""

import json

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertConfig, BertModel

tokenizer = AutoTokenizer.from_pretrained("bert")


class Classifier(nn.Module):
    def __init__(self, classes):
        super().__init__()
        encoder = BertModel(BertConfig(vocab_size=len(tokenizer)))
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
        self.encoder = get_peft_model(encoder, config)
        self.head = nn.Linear(768, classes)

    def forward(self, labels, **inputs):
        hidden = self.encoder(**inputs).last_hidden_state[:, 0]
        return nn.functional.cross_entropy(self.head(hidden), labels)


def collate(rows):
    batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([row["label"] for row in rows])}


with open("data/reviews.jsonl", encoding="utf-8") as file:
    loader = DataLoader([json.loads(line) for line in file], batch_size=8, collate_fn=collate)
model = Classifier(3)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
model.train()
for _ in range(3):
    for batch in loader:
        loss = model(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
torch.save(model.state_dict(), "classifier.pt")
