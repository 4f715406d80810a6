"""A dataclass for the settings, a Trainer of its own with a loss of its own."""

from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments


@dataclass
class Lora:
    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: list = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj"])
    use_rslora: bool = False


@dataclass
class Config:
    model: str = "llama"
    lr: float = 2e-4
    batch_size: int = 4
    length: int = 96
    lora: Lora = field(default_factory=Lora)


class WeightedTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.logits[:, :-1].float()
        loss = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100
        )
        return (loss, outputs) if return_outputs else loss


def main(config: Config):
    tokenizer = AutoTokenizer.from_pretrained(config.model)

    def encode(row):
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        made = tokenizer(text, padding="max_length", truncation=True, max_length=config.length)
        made["labels"] = [
            token if seen else -100
            for token, seen in zip(made["input_ids"], made["attention_mask"])
        ]
        return made

    data = load_dataset("json", data_files="data/chats.jsonl", split="train")
    data = data.map(encode, remove_columns=["messages"])
    model = AutoModelForCausalLM.from_pretrained(config.model, torch_dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **asdict(config.lora)))
    args = TrainingArguments(
        "out", learning_rate=config.lr, per_device_train_batch_size=config.batch_size,
        max_steps=200, warmup_steps=10, save_strategy="no", lr_scheduler_type="cosine",
    )  # fmt: skip
    WeightedTrainer(model=model, args=args, train_dataset=data).train()
    model.save_pretrained("out")


if __name__ == "__main__":
    main(Config())
