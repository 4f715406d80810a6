from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
)

model = AutoModelForCausalLM.from_pretrained("examples/phi3-mini")
model = get_peft_model(model, LoraConfig(target_modules=["qkv_proj", "o_proj"]))
args = TrainingArguments("outputs", save_strategy="steps", save_steps=50)
stop = EarlyStoppingCallback(early_stopping_patience=2)
trainer = Trainer(model, args, train_dataset=[], eval_dataset=[], callbacks=[stop])
trainer.train()
