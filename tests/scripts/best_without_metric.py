from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("examples/phi3-mini")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["qkv_proj", "o_proj"]))
arguments = TrainingArguments("out", save_strategy="best", eval_strategy="epoch")
trainer = Trainer(model, arguments, train_dataset=[], eval_dataset=[])
trainer.train()
