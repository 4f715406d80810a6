from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("examples/phi3-mini")
tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>", "</tool>"]})
model = AutoModelForCausalLM.from_pretrained("examples/phi3-mini")
model.resize_token_embeddings(len(tokenizer))
model = get_peft_model(model, LoraConfig(r=8, target_modules=["qkv_proj", "o_proj"]))
trainer = Trainer(model, TrainingArguments("out"), train_dataset=[])
trainer.train()
