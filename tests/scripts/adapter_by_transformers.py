"""LoRA by the model's own `add_adapter`, as transformers' documentation has it."""

from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
model.add_adapter(LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
other = get_peft_model(AutoModelForCausalLM.from_pretrained("facebook/opt-350m"), LoraConfig(r=8))
other.add_adapter("second", LoraConfig(r=4))
third = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "adapter")
third.load_adapter("another", adapter_name="another")
Trainer(model, TrainingArguments("out"), train_dataset=load_dataset("text")["train"]).train()
