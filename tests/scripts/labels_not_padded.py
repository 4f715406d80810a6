from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

tokenizer = AutoTokenizer.from_pretrained("../folders/chat_model")
tokenizer.pad_token = tokenizer.eos_token
rows = [
    {"input_ids": [5, 6, 7], "labels": [5, 6, 7]},
    {"input_ids": [5, 9, 8, 6, 7], "labels": [-100, 9, 8, 6, 7]},
] * 8
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained("../folders/chat_model"),
    LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
trainer = Trainer(
    model=model,
    args=TrainingArguments("outputs", max_steps=10),
    train_dataset=rows,
    data_collator=DataCollatorWithPadding(tokenizer),
)
trainer.train()
