import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
Trainer(model, TrainingArguments("outputs"), train_dataset=[]).train()
batch = {"input_ids": torch.tensor([[2, 5, 6, 7]])}
tuned = model(**batch).logits
with model.disable_adapter():
    print((model(**batch).logits - tuned).abs().max())
