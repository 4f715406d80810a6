"""QLoRA with SFTTrainer, as in the blog posts: prompt and completion columns."""

import torch
from datasets import load_dataset
from peft import LoraConfig, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

MODEL = "llama"


def to_prompt(row):
    return {
        "prompt": f"### Instruction: {row['instruction']}\n### Response:",
        "completion": f" {row['output']}",
    }


bnb_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_use_double_quant=True,
)
model = AutoModelForCausalLM.from_pretrained(
    MODEL, quantization_config=bnb_config, device_map="auto"
)
model.config.use_cache = False
model = prepare_model_for_kbit_training(model)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.padding_side = "right"

dataset = load_dataset("json", data_files="data/alpaca.json", split="train")
dataset = dataset.map(to_prompt, remove_columns=dataset.column_names)

trainer = SFTTrainer(
    model=model,
    train_dataset=dataset,
    processing_class=tokenizer,
    peft_config=LoraConfig(
        r=64, lora_alpha=16, lora_dropout=0.1, bias="none", task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"],
    ),
    args=SFTConfig(
        output_dir="./results",
        num_train_epochs=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        optim="paged_adamw_32bit",
        save_steps=25,
        logging_steps=5,
        learning_rate=2e-4,
        weight_decay=0.001,
        bf16=True,
        max_grad_norm=0.3,
        warmup_steps=5,
        lr_scheduler_type="constant_with_warmup",
        max_length=256,
    ),
)  # fmt: skip
trainer.train()
trainer.model.save_pretrained("adapter")
