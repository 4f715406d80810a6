"""Summaries with a T5, generation in the evaluation."""

from datasets import load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

tokenizer = AutoTokenizer.from_pretrained("t5")
model = AutoModelForSeq2SeqLM.from_pretrained("t5")
lora_config = LoraConfig(
    r=16,
    lora_alpha=32,
    target_modules=["q", "v"],
    lora_dropout=0.05,
    bias="none",
    task_type=TaskType.SEQ_2_SEQ_LM,
)
model = get_peft_model(model, lora_config)


def preprocess(rows):
    inputs = tokenizer(["name: " + text for text in rows["instruction"]], truncation=True)
    targets = tokenizer(text_target=[f"{text}</s>" for text in rows["output"]], truncation=True)
    inputs["labels"] = targets["input_ids"]
    return inputs


data = load_dataset("json", data_files="data/alpaca.json", split="train")
data = data.map(preprocess, batched=True, remove_columns=data.column_names)
split = data.train_test_split(0.1)
trainer = Seq2SeqTrainer(
    model=model,
    args=Seq2SeqTrainingArguments(
        output_dir="t5-lora",
        auto_find_batch_size=True,
        learning_rate=1e-3,
        num_train_epochs=5,
        predict_with_generate=True,
        eval_strategy="epoch",
        logging_strategy="steps",
    ),
    train_dataset=split["train"],
    eval_dataset=split["test"],
    data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100),
)
trainer.train()
trainer.model.save_pretrained("t5-lora/final")
