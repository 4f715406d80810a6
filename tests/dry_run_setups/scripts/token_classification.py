"""Named entities with a BERT."""

from datasets import load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)

LABELS = ["O", "B-LOC", "B-NUM"]
tokenizer = AutoTokenizer.from_pretrained("bert")
raw = load_dataset("json", data_files="data/entities.jsonl", split="train")


def tokenize_and_align(rows):
    tokenized = tokenizer(rows["words"], truncation=True, is_split_into_words=True)
    labels = []
    for number, tags in enumerate(rows["tags"]):
        previous, row = None, []
        for word in tokenized.word_ids(batch_index=number):
            row.append(-100 if word is None or word == previous else tags[word])
            previous = word
        labels.append(row)
    tokenized["labels"] = labels
    return tokenized


data = raw.map(tokenize_and_align, batched=True, remove_columns=raw.column_names)
model = AutoModelForTokenClassification.from_pretrained(
    "bert",
    num_labels=len(LABELS),
    id2label=dict(enumerate(LABELS)),
    label2id={label: number for number, label in enumerate(LABELS)},
)
peft_config = LoraConfig(
    task_type=TaskType.TOKEN_CLS,
    inference_mode=False,
    r=16,
    lora_alpha=16,
    lora_dropout=0.1,
    bias="all",
)
model = get_peft_model(model, peft_config)
trainer = Trainer(
    model=model,
    args=TrainingArguments("ner", learning_rate=1e-3, per_device_train_batch_size=8),
    train_dataset=data,
    processing_class=tokenizer,
    data_collator=DataCollatorForTokenClassification(tokenizer),
)
trainer.train()
trainer.save_model()
