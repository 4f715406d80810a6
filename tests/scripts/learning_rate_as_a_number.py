from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("examples/phi3-mini")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["qkv_proj", "o_proj"]))
arguments = TrainingArguments("out", learning_rate=2e-4, weight_decay=0, max_grad_norm=1)
Trainer(model, arguments, train_dataset=[])
