from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B")
rows = load_dataset("json", data_files="rows.jsonl", split="train")
rows = rows.map(lambda row: tokenizer(row["text"]))
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B"),
    LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
trainer = Trainer(
    model,
    TrainingArguments("outputs", eval_strategy="epoch"),
    train_dataset=rows.shuffle(seed=0),
    eval_dataset=rows.select(range(100)),
)
trainer.train()
