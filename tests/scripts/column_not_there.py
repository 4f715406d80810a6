from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("facebook/opt-125m")
rows = Dataset.from_list([{"text": "one"}, {"text": "two"}])
rows = rows.map(lambda row: tokenizer(row["text"]), remove_columns=["text", "id"])
model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
Trainer(model, TrainingArguments("outputs"), train_dataset=rows).train()
