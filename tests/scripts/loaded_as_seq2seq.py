from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM, Trainer, TrainingArguments

model = AutoModelForSeq2SeqLM.from_pretrained("examples/phi3-mini")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["qkv_proj", "o_proj"]))
trainer = Trainer(model, TrainingArguments("out"), train_dataset=[])
trainer.train()
