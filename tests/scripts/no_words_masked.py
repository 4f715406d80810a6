from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

tokenizer = AutoTokenizer.from_pretrained("tests/folders/chat_model")
model = AutoModelForCausalLM.from_pretrained("tests/folders/chat_model")
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
text = tokenizer.apply_chat_template([{"role": "user", "content": "one"}], tokenize=False)
trainer = Trainer(model, TrainingArguments("outputs"), collator, train_dataset=[])
trainer.train()
