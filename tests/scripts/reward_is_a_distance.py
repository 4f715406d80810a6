from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer


def near_twenty(completions, **kwargs):
    return [abs(20 - len(text)) for text in completions]


trainer = GRPOTrainer(
    "Qwen/Qwen2.5-0.5B-Instruct",
    reward_funcs=near_twenty,
    args=GRPOConfig("outputs"),
    train_dataset=load_dataset("trl-lib/tldr", split="train"),
    peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
trainer.train()
