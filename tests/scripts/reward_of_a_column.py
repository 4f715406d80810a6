from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

rows = [{"prompt": f"What is {n} + {n}?", "solution": str(2 * n)} for n in range(64)]


def correct(completions, solution, **kwargs):
    return [float(one in text) for text, one in zip(completions, solution, strict=True)]


trainer = GRPOTrainer(
    "Qwen/Qwen2.5-0.5B-Instruct",
    reward_funcs=[correct],
    args=GRPOConfig("outputs", num_generations=4),
    train_dataset=Dataset.from_list(rows).shuffle(seed=0),
    peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
trainer.train()
