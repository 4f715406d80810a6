"""KTO on ratings of single answers, the reference is the model without its adapters."""

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer

tokenizer = AutoTokenizer.from_pretrained("llama2")
model = AutoModelForCausalLM.from_pretrained("llama2", dtype="bfloat16")
pairs = load_dataset("json", data_files="data/preferences.jsonl", split="train")


def rated(rows):
    return {
        "prompt": rows["prompt"] * 2,
        "completion": rows["chosen"] + rows["rejected"],
        "label": [True] * len(rows["chosen"]) + [False] * len(rows["rejected"]),
    }


data = pairs.map(rated, batched=True, remove_columns=pairs.column_names).shuffle(seed=42)
trainer = KTOTrainer(
    model=model,
    args=KTOConfig(
        output_dir="kto",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=5e-6,
        beta=0.1,
        max_length=256,
        num_train_epochs=1,
        bf16=True,
    ),
    train_dataset=data,
    processing_class=tokenizer,
    peft_config=LoraConfig(
        r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    ),
)
trainer.train()
trainer.save_model("kto")
