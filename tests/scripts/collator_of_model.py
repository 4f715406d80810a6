from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

tokenizer = AutoTokenizer.from_pretrained("google-t5/t5-small")
model = AutoModelForSeq2SeqLM.from_pretrained("google-t5/t5-small")
model = get_peft_model(model, LoraConfig(target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"))
trainer = Seq2SeqTrainer(
    model,
    Seq2SeqTrainingArguments("outputs"),
    DataCollatorForSeq2Seq(model, tokenizer),
    train_dataset=[],
)
trainer.train()
