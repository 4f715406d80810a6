from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("examples/phi3-mini")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["qkv_proj", "o_proj"]))
arguments = TrainingArguments(
    "out",
    save_strategy="steps",
    save_steps=500,
    eval_strategy="steps",
    eval_steps=500,
)
Trainer(model, arguments, train_dataset=[])
