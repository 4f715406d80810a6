import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1")
config = LoraConfig(
    r=16,
    init_lora_weights="corda",
    corda_config=CordaConfig(corda_method="kpm"),
    target_modules=["q_proj", "v_proj"],
    task_type="CAUSAL_LM",
)


@torch.no_grad()
def run_model():
    for batch in torch.randint(0, 32000, (256, 1, 512)):
        model(input_ids=batch)


preprocess_corda(model, config, run_model=run_model)
model = get_peft_model(model, config)
trainer = Trainer(model=model, args=TrainingArguments("out", max_steps=200), train_dataset=[])
trainer.train()
