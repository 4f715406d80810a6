"""GRPO with a reward function."""

from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer


def reward_length(completions, **kwargs):
    return [-abs(20 - len(completion)) for completion in completions]


dataset = load_dataset("json", data_files="data/preferences.jsonl", split="train")
dataset = dataset.remove_columns(["chosen", "rejected"])
trainer = GRPOTrainer(
    model="llama",
    reward_funcs=reward_length,
    args=GRPOConfig(
        output_dir="grpo",
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=16,
        learning_rate=1e-5,
        max_steps=100,
        bf16=True,
    ),
    train_dataset=dataset,
    peft_config=LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    ),
)
trainer.train()
trainer.save_model()
