"""DPO with a reference model of its own."""

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

model = AutoModelForCausalLM.from_pretrained("llama", dtype="bfloat16")
ref_model = AutoModelForCausalLM.from_pretrained("llama", dtype="bfloat16")
tokenizer = AutoTokenizer.from_pretrained("llama")
dataset = load_dataset("json", data_files="data/preferences.jsonl", split="train")
splits = dataset.train_test_split(test_size=0.1)

model = get_peft_model(
    model,
    LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj"],
        task_type="CAUSAL_LM",
    ),
)
trainer = DPOTrainer(
    model,
    ref_model,
    args=DPOConfig(
        output_dir="dpo",
        beta=0.1,
        learning_rate=5e-5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=200,
        warmup_steps=20,
        bf16=True,
    ),
    train_dataset=splits["train"],
    eval_dataset=splits["test"],
    processing_class=tokenizer,
)
trainer.train()
print(trainer.evaluate())
trainer.save_model()
