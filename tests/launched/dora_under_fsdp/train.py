from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("org/model")
config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], use_dora=True)
model = get_peft_model(model, config)
trainer = Trainer(model=model, args=TrainingArguments("out", bf16=True), train_dataset=[])
trainer.train()
