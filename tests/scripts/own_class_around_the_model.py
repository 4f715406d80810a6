import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

MODEL = "../folders/chat_model"


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.language_model = AutoModelForCausalLM.from_pretrained(MODEL)
        self.head = nn.Linear(self.language_model.config.vocab_size, 1)

    def forward(self, input_ids, target):
        found = self.head(self.language_model(input_ids).logits[:, -1]).squeeze(-1)
        return nn.functional.mse_loss(found, target)


config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], modules_to_save=["head"])
model = get_peft_model(Regressor(), config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model.train()
for _ in range(4):
    loss = model(input_ids=torch.randint(5, 60, (2, 8)), target=torch.rand(2))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained("out")
