import torch
from peft import LoraConfig, get_peft_model
from rows import loader
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("org/model")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"], lora_dropout=0.1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
for batch in loader:
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
