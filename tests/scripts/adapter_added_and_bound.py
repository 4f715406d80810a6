from peft import LoraConfig
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
model = model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"]))
model.train()
Trainer(model, TrainingArguments("outputs"), train_dataset=[]).train()
