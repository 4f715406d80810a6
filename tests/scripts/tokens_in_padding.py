from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

FOLDER = "tests/folders/vocabulary_padded"
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
tokenizer.add_tokens([f"<tool_{number}>" for number in range(9)])
model = AutoModelForCausalLM.from_pretrained(FOLDER)
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
trainer = Trainer(model, TrainingArguments("out"), train_dataset=[])
trainer.train()
