from peft import LoraConfig
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"]))
model.print_trainable_parameters()
trainer = Trainer(model, TrainingArguments("outputs"), train_dataset=[])
trainer.train()
