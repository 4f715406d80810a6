from peft import EvaConfig, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1")
config = LoraConfig(
    r=16,
    init_lora_weights="eva",
    eva_config=EvaConfig(rho=2.0),
    target_modules=["q_proj", "v_proj"],
    task_type="CAUSAL_LM",
)
model = get_peft_model(model, config)
trainer = Trainer(model=model, args=TrainingArguments("out", max_steps=200), train_dataset=[])
trainer.train()
