import torch
from peft import LoraConfig, get_peft_model
from rows import loader
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("org/model")
teacher = AutoModelForCausalLM.from_pretrained("org/teacher")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"], lora_dropout=0.1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model.train()
for batch in loader:
    with torch.no_grad():
        wanted = teacher(**batch).logits
    outputs = model(**batch)
    loss = outputs.loss + torch.nn.functional.mse_loss(outputs.logits, wanted)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(loss.item())
