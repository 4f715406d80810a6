import numpy as np
from datasets import load_dataset
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
model = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"]))
rows = load_dataset("json", data_files="rows.jsonl", split="train").train_test_split(0.1)


def exact(evaluated):
    predictions, labels = evaluated
    predictions = np.maximum(predictions, 0)
    answers = tokenizer.batch_decode(labels, skip_special_tokens=True)
    texts = tokenizer.batch_decode(predictions, skip_special_tokens=True)
    return {"exact": float(np.mean(np.array(answers) == np.array(texts)))}


trainer = Seq2SeqTrainer(
    model=model,
    args=Seq2SeqTrainingArguments("outputs", predict_with_generate=True),
    train_dataset=rows["train"],
    eval_dataset=rows["test"],
    data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    compute_metrics=exact,
)
trainer.train()
