from peft import LoraConfig
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

peft_config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
Trainer(model, TrainingArguments("outputs"), train_dataset=[]).train()
